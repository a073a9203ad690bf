"""Which learning rate represents a rank, by number loss or update norm, and the curves it gives. Pure."""
