"""Explanation of a list: the probability of each code, the rewards, and the items that were left out.

list       as a request gets it, with log π(c_l | x, c_<l) of every code and the rank of each item by the reward
removed    items that would be in a list of the same length if nothing were left out
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl

from adagrpo.lists.query import Query
from adagrpo.lists.recommender import Recommender

LONGEST_TITLE = 90  # characters


@dataclass
class ItemTitles:
    """Titles of items, found by their words or by ids."""

    recommender: Recommender

    @cached_property
    def _table(self) -> pl.DataFrame:
        texts = pl.Series(
            "title", [*self.recommender.texts()] or [""] * len(self.recommender.item_ids), dtype=pl.String
        )
        ids = pl.Series("item_id", [str(name) for name in self.recommender.item_ids])
        table = pl.DataFrame([ids, texts, pl.Series("listed", self.recommender.catalog.listed.cpu().numpy())])
        return table.with_columns(pl.concat_str(["item_id", "title"], separator=" ").str.to_lowercase().alias("words"))

    def of(self, item: int) -> dict[str, Any]:
        """Id and title of an item, and whether it is listed."""
        title = self._table["title"][item].strip()
        title = title if len(title) <= LONGEST_TITLE else f"{title[: LONGEST_TITLE - 3]}..."
        listed = bool(self._table["listed"][item])
        return {"item_id": self.recommender.item_ids[item], "title": title, "listed": listed}

    def search(self, text: str, count: int) -> list[dict[str, Any]]:
        """The first items whose id or title holds every word, or without words the first, by number."""
        found = self._table.with_row_index("item")
        for word in text.lower().split()[:8]:
            found = found.filter(pl.col("words").str.contains(word, literal=True))
        return [self.of(item) for item in found["item"].head(count).to_list()]


def explain(recommender: Recommender, titles: ItemTitles, query: Query, k: int) -> dict[str, Any]:
    """The list of a query, and why it is that.

    Args:
        query: with a history or without.

    Returns:
        JSON-able: `source`; `list`, best first, each with item_id, title, codes, score, `log_probs` (one a code),
        `reward` and `reward_rank` (None without a reward); and `removed`, with item_id, title and the rank that it
        would have.
    """
    found = recommender.recommend([query])[0]
    items = recommender.known(found.items[:k])[0]
    open_list = recommender.recommend([Query(query.history, False)])[0].items[:k]
    removed = [
        {"rank": rank, **titles.of(item)}
        for rank, item in enumerate(recommender.known(open_list)[0], start=1)
        if item not in items
    ]
    rows: list[dict[str, Any]] = [
        {"codes": codes, "score": score, "log_probs": None, "reward": None, "reward_rank": None, **titles.of(item)}
        for item, score, codes in zip(items, found.scores, found.codes, strict=False)
    ]
    if len(query.history) and items:
        log_probs, rewards = recommender.score_items(query.history, items)
        ranks = _ranks(rewards) if rewards is not None else [None] * len(items)
        for place, row in enumerate(rows):
            row |= {"log_probs": [value if math.isfinite(value) else None for value in log_probs[place]]}
            row |= {"reward": None if rewards is None else rewards[place], "reward_rank": ranks[place]}
    narrowed = query.eligible is not None or bool(len(query.without)) or bool(query.exclude_history)
    return {"source": found.source, "list": rows, "removed": removed if narrowed or recommender.exclude_history else []}


def _ranks(values: Sequence[float]) -> list[int]:
    """From 1, the highest first; of equals the first.

    >>> _ranks([0.5, 2.0, 0.5])
    [2, 1, 3]
    """
    order = sorted(range(len(values)), key=lambda place: -values[place])
    return [order.index(place) + 1 for place in range(len(values))]
