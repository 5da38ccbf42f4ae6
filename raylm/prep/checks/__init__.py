"""What a prepared data set is measured by: what was skipped and why, the quarantine of broken input, the requirements."""
