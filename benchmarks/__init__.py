"""Measurements of speed, memory and reliability. Each writes rows to a file of results and prints a table."""
