"""Preference: the questions, the items that can be an answer, and the score of a target."""
