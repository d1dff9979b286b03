"""Semantic IDs: item vectors, their residual quantisation, the catalogue of codes and its prefix tree."""
