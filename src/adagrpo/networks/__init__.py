"""Building blocks of the policies and the ranker."""
