"""Floor 4: data with a known truth."""
