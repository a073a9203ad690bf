"""How weights change: one trainer, and one file per way of making a base model trainable."""
