"""Recommendations over HTTP: what answers, how requests are put together, and the application."""

from adagrpo.serving.eligibility import Eligibility, Filter, Narrowing
from adagrpo.serving.recommender import Query, Recommendations, Recommender

__all__ = [
    "Eligibility",
    "Filter",
    "Narrowing",
    "Query",
    "Recommendations",
    "Recommender",
]
