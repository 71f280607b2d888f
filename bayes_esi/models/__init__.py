"""Floor 3: what we believe, as data."""
