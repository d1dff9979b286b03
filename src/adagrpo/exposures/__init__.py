"""Exposure log: rows of lists and feedback, their storage, and collection from several machines."""
