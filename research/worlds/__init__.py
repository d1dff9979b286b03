"""Which list `adagrpo decide` chooses in simulated shops of several kinds, against the truth."""
