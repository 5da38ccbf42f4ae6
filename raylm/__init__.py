"""Elastic training of language models: text in, shards, lanes, workers that come and go, checkpoints, exports out."""

__version__ = "0.1.0"
