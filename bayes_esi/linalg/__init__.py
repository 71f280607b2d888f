"""Floor 1: linear algebra that the field needs and libraries lack."""
