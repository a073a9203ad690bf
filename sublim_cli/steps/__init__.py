"""The stages of an experiment, one file each: which files a stage reads and writes."""
