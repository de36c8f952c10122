"""The writer in a process of its own: what travels between the two, and both ends."""
