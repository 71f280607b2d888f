"""Floor 5: whether probabilities mean what they say."""
