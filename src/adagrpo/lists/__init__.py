"""Lists of items for a user: the beam, what may be in it, its order by a reward, and why a list is what it is."""

from adagrpo.lists.query import ListOrder, Query, Recommendations
from adagrpo.lists.recommender import Recommender

__all__ = [
    "ListOrder",
    "Query",
    "Recommendations",
    "Recommender",
]
