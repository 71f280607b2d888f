"""Floor 4: how we compute."""
