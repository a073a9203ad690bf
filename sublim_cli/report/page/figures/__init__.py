"""The report's figures: each a Vega-Lite specification made from results, drawn on the page and in files."""
