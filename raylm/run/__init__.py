"""The run folder: its log, its history, and the lease that says who trains it."""
