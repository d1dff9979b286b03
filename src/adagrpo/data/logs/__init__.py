"""Log files and item tables of all kinds, to rows that are accepted or rejected with a reason."""
