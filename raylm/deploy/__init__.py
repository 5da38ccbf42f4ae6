"""Clusters of Ray nodes; so far several nodes on one machine."""
