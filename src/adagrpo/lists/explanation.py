"""Explains a list: log-probabilities of codes, ranks by reward, items left out."""

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
    """Titles of items, searchable by words and ids."""

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
        """Return an item's id and title, and whether it is listed."""
        title = self._table["title"][item].strip()
        title = title if len(title) <= LONGEST_TITLE else f"{title[: LONGEST_TITLE - 3]}..."
        listed = bool(self._table["listed"][item])
        return {"item_id": self.recommender.item_ids[item], "title": title, "listed": listed}

    def search(self, text: str, count: int) -> list[dict[str, Any]]:
        """Return the first items whose id or title contains every word."""
        found = self._table.with_row_index("item")
        for word in text.lower().split()[:8]:
            found = found.filter(pl.col("words").str.contains(word, literal=True))
        return [self.of(item) for item in found["item"].head(count).to_list()]


def explain(recommender: Recommender, titles: ItemTitles, query: Query, k: int) -> dict[str, Any]:
    """Explain the list of a query.

    Returns:
        JSON-able: `source`; `list`, best first, with `log_probs` (one per code), `reward` and `reward_rank`; `removed`,
        items of an unrestricted list, with their rank there.
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
        for index, row in enumerate(rows):
            row |= {"log_probs": [value if math.isfinite(value) else None for value in log_probs[index]]}
            row |= {"reward": None if rewards is None else rewards[index], "reward_rank": ranks[index]}
    narrowed = query.eligible is not None or bool(len(query.without)) or bool(query.exclude_history)
    return {"source": found.source, "list": rows, "removed": removed if narrowed or recommender.exclude_history else []}


def _ranks(values: Sequence[float]) -> list[int]:
    order = sorted(range(len(values)), key=lambda index: -values[index])
    return [order.index(index) + 1 for index in range(len(values))]
