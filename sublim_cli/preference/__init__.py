"""Which answers name an item, and the scores computed from answer probabilities."""
