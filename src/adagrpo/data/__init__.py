"""Data: numbered interactions, splits that do not leak, the prepared files of a run, padded batches."""
