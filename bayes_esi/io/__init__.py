"""Floor 5: the only readers and writers of other people's objects."""
