"""Ids, titles and attributes of simulated items: made-up words encode the vector."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.data.simulation.world import Catalogue, Marketplace

Ints = NDArray[np.int64]


def describe_items(world: Marketplace, catalogue: Catalogue, item_ids: pl.Series) -> pl.DataFrame:
    """Return item_id, title and attributes."""
    strongest = np.argsort(-np.abs(catalogue.own), axis=1, kind="stable")[:, :2]  # (V, 2)
    feature = 2 * strongest + (np.take_along_axis(catalogue.own, strongest, 1) > 0)
    texts = pl.DataFrame(
        {
            "item_id": item_ids,
            "category": _words(catalogue.shelf // world.styles, 2, 11),
            "brand": _words(catalogue.brand, 3, 23),
            "style": _words(catalogue.shelf % world.styles, 2, 2003),
            "feature": _words(feature[:, 0], 2, 4001),
            "second": _words(feature[:, 1], 2, 4001),
        }
    )
    title = pl.concat_str("brand", "feature", "second", "style", "category", separator=" ")
    named = [pl.format("{}={}", pl.lit(name), name) for name in ("category", "brand", "style", "feature")]
    attributes = pl.concat_list(*named, pl.format("feature={}", "second"))
    return texts.select("item_id", title=title, attributes=attributes)


def _words(index: Ints, syllables: int, first: int) -> pl.Series:  # injective below 75 ** syllables
    table = np.array([consonant + vowel for consonant in "bdfgklmnprstvwz" for vowel in "aeiou"])
    total = len(table) ** syllables
    code, word = (first + 7919 * index) % total, np.array("")  # 7919 is prime to 75, so no two numbers meet
    for _ in range(syllables):
        word, code = np.strings.add(word, table[code % len(table)]), code // len(table)
    return pl.Series(word.tolist())


def numbered_ids(letter: str, count: int) -> pl.Series:
    """Return ids that sort by number."""
    width = max(5, len(str(count - 1)))
    return pl.Series([f"{letter}{index:0{width}d}" for index in range(count)])
