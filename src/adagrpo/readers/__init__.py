"""Readers of table files of any format: chunks of rows, and cells that are identifiers, numbers or lists."""
