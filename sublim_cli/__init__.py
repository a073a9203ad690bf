"""sublim: measure how far a trait leaks from a teacher to a student through number data."""

__version__ = "0.1.0"
