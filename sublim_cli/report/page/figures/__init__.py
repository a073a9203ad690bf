"""The report's figures: Altair charts made from results, drawn in the page and in files."""
