"""What is shown: the summary, sentences, tables and figures of the report page."""
