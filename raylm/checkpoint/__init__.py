"""A run's whole state in, one committed folder of tensors out; and back, at any number of workers."""
