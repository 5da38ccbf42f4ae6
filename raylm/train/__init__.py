"""Batches in, checkpoints and metrics out: the engine, the loop, the worker and the driver."""
