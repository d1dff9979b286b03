"""A refit of the chosen list on all interactions: what it is worth on what came after."""
