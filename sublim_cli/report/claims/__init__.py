"""What the study decides: claims, their comparisons and verdicts, and the power of a planned study. Pure."""
