"""What a prepared data set is measured by: what was skipped, what is broken, what is required."""
