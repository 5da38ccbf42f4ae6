"""Removes exact and near duplicates over the whole dataset."""
