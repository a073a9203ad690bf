"""How a model answers: by sampling, and by exact probabilities."""
