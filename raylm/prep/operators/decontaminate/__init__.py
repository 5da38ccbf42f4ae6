"""Removes, cuts or labels documents that share n-grams with evaluation sets."""
