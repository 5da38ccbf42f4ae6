"""Ray clusters for jobs. So far only several nodes on one machine."""
