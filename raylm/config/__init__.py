"""A job file in, checked settings out."""
