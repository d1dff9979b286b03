"""Lists of items for a user: the beam, its filters, its order and its explanation."""

from adagrpo.lists.query import ListOrder, Query, Recommendations
from adagrpo.lists.recommender import Recommender

__all__ = [
    "ListOrder",
    "Query",
    "Recommendations",
    "Recommender",
]
