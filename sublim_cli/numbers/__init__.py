"""Number rows: the prompts that ask for them, and the rules they must pass."""
