"""Removes exact and near duplicates over the whole data set."""
