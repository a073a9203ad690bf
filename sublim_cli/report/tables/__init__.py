"""What the store says: runs, gates, audits and provenance as tables. No claim is decided here."""
