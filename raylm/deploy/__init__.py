"""Comes in: a wish for machines. Leaves: a Ray cluster that runs jobs. So far only several nodes on one machine."""
