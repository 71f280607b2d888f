"""Floor 2: how sources reach the sensors."""
