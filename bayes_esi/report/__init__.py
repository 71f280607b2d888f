"""Floor 6: results for readers."""
