"""A simulated marketplace, whose truth is known."""
