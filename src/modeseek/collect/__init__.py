"""Get better data: sample, select, label, and keep what was found with where it came from."""
