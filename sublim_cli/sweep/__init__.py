"""Which cells a sweep holds, and where they run."""
