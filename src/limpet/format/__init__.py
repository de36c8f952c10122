"""What a checkpoint is made of: pure functions over plain data, without I/O."""
