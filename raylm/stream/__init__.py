"""Shards in, batches out: the same global batches in the same order at any number of workers."""
