"""What the store says: runs, gates, audits and provenance as tables and plain data. No claim is decided here."""
