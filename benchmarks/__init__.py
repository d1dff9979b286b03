"""Measurements of speed, memory and reliability. Each writes rows to a file of results and prints a table."""

import adagrpo  # noqa: F401 - before torch, so that threads wait here as they do in the product
