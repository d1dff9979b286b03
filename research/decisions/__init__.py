"""What `adagrpo decide` serves in simulated shops, against the truth."""
