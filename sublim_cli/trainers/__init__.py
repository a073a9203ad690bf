"""How weights change: methods (`methods.py`), optimizers, precision, the training itself and its audit."""
