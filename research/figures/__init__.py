"""Pictures that more than one page shows."""
