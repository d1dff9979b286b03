"""The next order, by time, against the last line: which lists are good at what a shop asks."""
