"""What is concluded: results, figures and the page. Reads artifacts, never a model."""
