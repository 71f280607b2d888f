"""Floor 5: what a result can answer."""
