"""Shapes of models that recipes name on a hub, as numbers: `shapes.yaml`, read by `models.memory`."""
