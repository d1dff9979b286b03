"""Measurements: what a setting is worth, what a step costs. Each writes rows to `results/` and prints a table."""
