"""Recommendations over HTTP: what answers, how requests are put together, and the application."""

from adagrpo.serving.batching import MicroBatcher, Overloaded
from adagrpo.serving.eligibility import Eligibility, Filter, Narrowing
from adagrpo.serving.recommender import Query, Recommendations, Recommender

__all__ = [
    "Eligibility",
    "Filter",
    "MicroBatcher",
    "Narrowing",
    "Overloaded",
    "Query",
    "Recommendations",
    "Recommender",
]
