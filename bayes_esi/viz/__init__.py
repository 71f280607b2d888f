"""Floor 6: figures."""
