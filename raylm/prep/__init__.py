"""Preparation: raw files become documents, tokens and shards, by tasks that may be killed and done again."""
