"""Floor 5: whether probabilities mean what they say, and how far estimates are from the truth."""
