"""Floor 2: the geometry of places."""
