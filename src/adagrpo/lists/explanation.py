"""Explains a list: what proposed and moved each item; log-probabilities of codes, ranks by reward, items left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl
import torch

from adagrpo.lists.correction import inputs_of
from adagrpo.lists.query import Query, Source
from adagrpo.lists.recommender import Recommender
from adagrpo.lists.rules import Moved
from adagrpo.lists.sources import NearestItems
from adagrpo.types import ItemId

LONGEST_TITLE = 90  # characters
MATCHING = ("item_knn", "successors", "together")  # sources that match items of the history
MATCHES = 3  # items of the history that are named


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
        """Return an item's id, title, whether it is listed, and `about`, texts such as `category=toys`."""
        title = self._table["title"][item].strip()
        title = title if len(title) <= LONGEST_TITLE else f"{title[: LONGEST_TITLE - 3]}..."
        listed = bool(self._table["listed"][item])
        about = self.recommender.eligibility.groups.about(item)
        return {"item_id": self.recommender.item_ids[item], "title": title, "listed": listed, "about": about}

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
        order = None if rewards is None else sorted(range(len(rewards)), key=lambda index: -rewards[index])
        for index, row in enumerate(rows):
            row["log_probs"] = [value if math.isfinite(value) else None for value in log_probs[index]]
            if rewards is not None and order is not None:
                row |= {"reward": rewards[index], "reward_rank": order.index(index) + 1}
    narrowed = query.eligible is not None or bool(len(query.without)) or bool(query.exclude_history)
    return {"source": found.source, "list": rows, "removed": removed if narrowed or recommender.exclude_history else []}


def reasons(recommender: Recommender, query: Query, items: Sequence[ItemId], source: Source) -> list[dict[str, Any]]:
    """Say for each item of a list why it stands where it does.

    Args:
        items: of the answer to the query, best first.

    Returns:
        JSON-able: `sources` that proposed it; `features`, each one's part of the score less its mean over `items`, the
        network as `correction`; `history`, by source the items of the history that led to it, the strongest first;
        `rules` without which it would stand elsewhere; `rank_without_rules`, None where it would not be there.
    """
    listed = recommender.known(items)[0]
    moves = recommender.moves(query) if source != "sampled" else {}
    rules = recommender.active_rules
    narrowed = query if rules is None else rules.narrow(query)
    proposed: dict[str, set[int]] = {str(source): {*listed}}
    parts: dict[str, dict[int, float]] = {}
    near: dict[str, NearestItems] = {}
    if isinstance(recommender.alone, NearestItems):
        near[source] = recommender.alone
    fusion = recommender.fusion
    if source == "fused" and fusion is not None and fusion.fitted is not None:
        proposed = recommender.proposed(narrowed)
        candidates = recommender.candidates([narrowed])
        weights = fusion.fitted.whole if candidates.rewarded else fusion.fitted.without_reward
        scored = candidates.items[0].tolist()
        features = candidates.features[..., [fusion.features.index(name) for name in weights.weights]]
        for column, (name, weight) in enumerate(weights.weights.items()):
            part = features[0, :, column] * (weight / weights.stds[name])
            parts[name] = dict(zip(scored, part.tolist(), strict=True))
        if weights.correction is not None:
            with torch.inference_mode():
                added = weights.correction(inputs_of(features, candidates.items >= 0))
            parts["correction"] = dict(zip(scored, added[0].tolist(), strict=True))
        near = {name: one for name in MATCHING if isinstance(one := fusion.sources.get(name), NearestItems)}
    elif source == "policy" and recommender.reward is not None and listed:
        log_probs, rewards = recommender.score_items(query.history, listed)
        parts["policy"] = dict(zip(listed, map(sum, log_probs), strict=True))
        if rewards is not None:
            factor = recommender.reward_weight / recommender.within_list_std
            parts["reward"] = {item: factor * value for item, value in zip(listed, rewards, strict=True)}
    known = {name: [part[item] for item in listed if item in part] for name, part in parts.items()}
    means = {name: sum(values) / max(1, len(values)) for name, values in known.items()}
    history = recommender.weighed_history(query) if near and len(query.history) else []
    told = []
    for item in listed:
        matches: dict[str, list[ItemId]] = {}
        for name, one in near.items():
            strength: dict[int, float] = {}
            for had, weight in history:
                strength[had] = strength.get(had, 0.0) + weight * float(one.near[had, item])
            strongest = sorted((had for had in strength if strength[had] > 0), key=lambda had: -strength[had])[:MATCHES]
            matches |= {name: [recommender.item_ids[had] for had in strongest]} if strongest else {}
        moved = moves.get(item, Moved([], None))
        told.append(
            {
                "sources": [name for name, found in proposed.items() if item in found],
                "features": {name: part[item] - means[name] for name, part in parts.items() if item in part},
                "history": matches,
                "rules": moved.by,
                "rank_without_rules": moved.rank,
            }
        )
    return told
