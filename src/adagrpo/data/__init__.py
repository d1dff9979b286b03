"""Interactions, splits, the prepared files of a run, padded batches."""
