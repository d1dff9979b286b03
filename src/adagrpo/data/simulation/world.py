"""The parameters and items of a simulated marketplace (`adagrpo.data.simulation.marketplace`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl

from adagrpo.errors import UserError
from adagrpo.types import Floats, Ints

WAVES = 4  # cold items are released at this many points in time
CENTRE, STYLE, OWN = 1.0, 0.7, 0.7  # lengths of the parts of an item's vector, before it is scaled to 1
QUALITY = 0.5  # standard deviation of quality, in logits
_LATER = ("satiation", "dwell_seconds")
POPULARITY_QUALITY = 0.5  # correlation of quality with what the popularity rank is made from


@dataclass(frozen=True)
class Marketplace:
    """Parameters of a marketplace; UserError if out of range, or the catalogue is too small."""

    users: int = 2000
    items: int = 1000
    factors: int = 16  # length of taste and item vectors
    categories: int = 20  # each has one that complements it
    styles: int = 5  # shared by the categories
    steps: float = 25.0  # mean visits per user (Gamma-Poisson)
    slate_size: int = 10  # items shown per visit
    exposure_bias: float = 0.5  # exponent of the popularity rank in the platform's weights; 0: none, 1: strong
    targeting: float = 6.0  # weight of taste in the platform's weights
    targeting_error: float = 0.5  # standard deviation of its error, in log weight
    position_bias: float = 0.5  # exponent of the decay of examination by slot; 0: all are examined
    sharpness: float = 14.0  # weight of taste in the utility, logits
    threshold: float = 10.0  # what taste and quality must overcome, logits
    noise: float = 1.0  # scale of the users' logistic error, at least .001
    carry: float = 1.5  # length of the pull of purchases; a taste has length 1
    drift: float = 0.1  # length of the change of taste per visit
    cold_share: float = 0.1  # share of items released late and then rarely shown
    later_share: float = 0.0  # share of items released after the log
    satiation: float = 0.0  # logits that a recent purchase takes from its category
    dwell_seconds: float = 0.0  # median dwell time at purchase probability one half; 0: no such column
    seed: int = 0  # users and items do not depend on the platform's parameters

    def __post_init__(self) -> None:
        for name in ("users", "items", "categories", "styles", "slate_size", "steps"):
            if not getattr(self, name) > 0:
                raise UserError(f"marketplace.{name}: {getattr(self, name)}, must be above 0")
        for name in ("exposure_bias", "targeting_error", "position_bias", "noise", "carry", "drift", "seed", *_LATER):
            if not getattr(self, name) >= 0:
                raise UserError(f"marketplace.{name}: {getattr(self, name)}, must be 0 or more")
        if self.factors < 2:
            raise UserError(f"marketplace.factors: {self.factors}, must be 2 or more")
        for name in ("cold_share", "later_share"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"marketplace.{name}: {getattr(self, name)}, must be at least 0 and below 1")
        needed = self.slate_size + self.longest
        there = self.items - round(self.cold_share * self.items) - round(self.later_share * self.items)
        if there < needed:
            raise UserError(
                f"marketplace.items: {self.items}, of which {there} are neither cold nor come later; slates and visits"
                f" need {needed}"
            )

    @property
    def longest(self) -> int:
        """Return the log's length in steps, the maximum number of visits."""
        return max(1, round(2.5 * self.steps))


class Catalogue(NamedTuple):
    """The items, and the shelves (category and style) they come from."""

    shelves: Floats  # (S, D) unit vectors
    shelf: Ints  # (V,)
    brand: Ints  # (V,)
    own: Floats  # (V, D) the part of the vector that is the item's own
    vectors: Floats  # (V, D)
    pull: Floats  # (V, D) where a purchase draws the taste to, unit vectors
    bias: Floats  # (V,)
    rank: Ints  # (V,) 1 is the most popular
    wave: Ints  # (V,) 0 is there from the start, WAVES + 1 comes after the log
    category: Ints  # (V,)


def make_catalogue(world: Marketplace, rng: np.random.Generator) -> Catalogue:
    """Sample a world's items and shelves."""
    directions = rng.normal(size=(world.categories + world.styles, world.factors))
    for _ in range(200):  # push them apart
        directions = unit(directions)
        cosines = directions @ directions.T
        np.fill_diagonal(cosines, 0.0)
        directions = directions - 0.2 * cosines**3 @ directions
    directions = unit(directions)
    centres, styles = directions[: world.categories], directions[world.categories :]
    # A cycle through all categories: each is complemented by another one, as long as there are two.
    cycle = rng.permutation(world.categories)
    complement = np.empty_like(cycle)
    complement[cycle] = np.roll(cycle, -1)
    category = rng.integers(world.categories, size=world.items)
    style = rng.integers(world.styles, size=world.items)
    own = unit(rng.normal(size=(world.items, world.factors)))
    shelves = unit(CENTRE * centres[:, None] + STYLE * styles).reshape(-1, world.factors)
    brands = int(np.clip(world.items // (12 * world.categories), 2, 50))  # of each category
    brand = category * brands + rng.integers(brands, size=world.items)
    reputation = rng.normal(size=world.categories * brands)
    quality = 0.6 * reputation[brand] + 0.8 * rng.normal(size=world.items)
    chance = rng.normal(size=world.items)
    popularity = POPULARITY_QUALITY * quality + np.sqrt(1 - POPULARITY_QUALITY**2) * chance
    rank = np.empty(world.items, dtype=np.int64)
    rank[np.argsort(-popularity, kind="stable")] = np.arange(1, world.items + 1)
    wave = np.zeros(world.items, dtype=np.int64)
    order, colds = rng.permutation(world.items), round(world.cold_share * world.items)
    cold, later = order[:colds], order[colds : colds + round(world.later_share * world.items)]
    wave[cold] = 1 + np.arange(len(cold)) % WAVES
    wave[later] = WAVES + 1
    return Catalogue(
        shelves=shelves,
        shelf=category * world.styles + style,
        brand=brand,
        own=own,
        vectors=unit(CENTRE * centres[category] + STYLE * styles[style] + OWN * own),
        pull=unit(CENTRE * centres[complement[category]] + STYLE * styles[style] + OWN * np.roll(own, 1, axis=1)),
        bias=QUALITY * quality - world.threshold,
        rank=rank,
        wave=wave,
        category=category,
    )


def unit(vectors: Floats) -> Floats:  # (..., D)
    """Normalize to length 1."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


def describe_items(world: Marketplace, catalogue: Catalogue, item_ids: pl.Series) -> pl.DataFrame:
    """Return item_id, title and attributes, made-up words that encode the vector."""
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
