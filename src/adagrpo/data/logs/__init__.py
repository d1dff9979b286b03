"""Readers of log files and item tables; rows are accepted, or rejected with a reason."""
