"""Pages of the studies: tables and charts made of their rows, `python -m research.pages`."""
