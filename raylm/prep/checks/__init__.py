"""What a prepared dataset is measured by: what was skipped, what is broken, what is required."""
