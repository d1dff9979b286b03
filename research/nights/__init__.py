"""A simulated shop whose list is refreshed every night."""
