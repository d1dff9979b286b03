"""The table of sources, by what they need at serving time, the least first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from adagrpo.config import Config
from adagrpo.lists import ease, own, taste
from adagrpo.lists.content import ContentSimilarity
from adagrpo.lists.sources import (
    FLOOR,
    SUCCESSOR_FLOOR,
    CandidateSource,
    NearestItems,
    RankerScores,
    Shares,
    click_through,
    popular_shares,
    recent_shares,
    similarities,
    successors,
    together,
)
from adagrpo.lists.user_knn import NearestUsers
from adagrpo.rewards.sequential import SequentialRanker
from adagrpo.types import Ragged

__all__ = ["BASELINES", "FITTED", "LISTED", "SOURCES", "Fitted", "Source", "baselines", "fused", "listed"]

Matrix = sparse.csr_array  # (V, V) float32
Arrays = Mapping[str, NDArray[np.float32]]  # by name


class Shown(NamedTuple):
    """Training impressions, oldest first."""

    users: NDArray[np.int64]  # (N,)
    items: NDArray[np.int64]  # (N,)
    clicked: NDArray[np.bool_]  # (N,)
    slots: NDArray[np.int64] | None  # (N,), if they are known


class FittedOn(Protocol):
    """What sources are fitted on."""

    @property
    def training(self) -> Ragged:
        """The training sequences."""

    @property
    def num_items(self) -> int:
        """`V`."""

    def descriptions(self) -> NDArray[np.float32]:
        """Return (V, D) vectors, attributes and numbers of items, see `adagrpo.lists.taste`."""

    def shown(self) -> Shown:
        """Return the training impressions."""


class Fitted(Protocol):
    """The fitted parts of a run's sources."""

    def counts(self) -> NDArray[np.int64]:
        """Return (V,) training interactions of each item."""

    def ages(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return each training interaction's item, and its age at the end of training."""

    def shown(self) -> Shown:
        """Return the training impressions."""

    def user_rows(self) -> Mapping[str, int]:
        """Return the row of each user by id as text."""

    def matrix(self, source: str) -> Matrix:
        """Return the matrix that a source's `fit` returned."""

    def arrays(self, source: str) -> Arrays:
        """Return the arrays that a source's `fit` returned."""

    def training(self) -> Ragged:
        """Return the training sequences."""

    def ranker(self) -> SequentialRanker:
        """Return the sequential ranker."""


@dataclass(frozen=True)
class Source:
    """A source of items.

    Attributes:
        load: builds it from a run.
        fit: computes its matrix, sparse (V, V), or its arrays by name; None: it has none.
        stage: whose folder holds its file; None: only training data needed.
        file: path in that folder.
        reads: what `fit` reads besides training interactions.
        most_items: largest catalogue of which `decide` measures the list, as `evaluate` never does; above it `fit` must
            return an empty matrix. None: any, and both measure it.
        listed: is a list by itself.
        fused: is a feature of fused lists.
        proposes: its best items are candidates of fused lists.
        optional: is a feature only where held-out choices show that it helps.
        past: reads the user's whole past.
        when: runs that have it.
    """

    needs: str
    load: Callable[[Fitted], CandidateSource]
    fit: Callable[[FittedOn], Matrix | Arrays] | None = None
    stage: str | None = None
    file: tuple[str, ...] = ()
    reads: tuple[Literal["descriptions", "impressions", "vectors"], ...] = ()
    most_items: int | None = None
    listed: bool = True
    fused: bool = True
    proposes: bool = True
    optional: bool = False
    past: bool = False
    when: Callable[[Config], bool] = lambda config: True


def _with_impressions(config: Config) -> bool:
    data = config.data
    return bool(data.impressions or data.exposures or data.marketplace or data.columns.clicked or data.click_rating)


def _of_own_items(load: Callable[[Fitted], CandidateSource], *, listed: bool = False, proposes: bool = True) -> Source:
    return Source(
        "the user's own items",
        load,
        listed=listed,
        proposes=proposes,
        past=True,
        when=lambda config: config.evaluation.own_items,
    )


def _tastes(on: FittedOn) -> Arrays:
    described = on.descriptions()
    return {"items": described, "users": taste.user_tastes(*on.shown(), described, len(on.training))}


SOURCES: dict[str, Source] = {
    "popularity": Source("counts", lambda run: Shares(popular_shares(run.counts())), proposes=False),
    "recent_popularity": Source(
        "counts by time",
        lambda run: Shares(recent_shares(*run.ages(), len(run.counts()))),
        stage="prepare",
        file=("training_logs.parquet",),
        when=lambda config: config.data.split.kind == "temporal",
    ),
    "click_through": Source(
        "counts of impressions",
        lambda run: Shares(click_through(run.shown().items, run.shown().clicked, len(run.counts()))),
        stage="prepare",
        file=("impressions.parquet",),
        when=_with_impressions,
    ),
    "own": _of_own_items(lambda run: own.OwnItems(run.counts()), listed=True),
    "own_recent": _of_own_items(lambda run: own.OwnRecent(len(run.counts()))),
    "own_since": _of_own_items(lambda run: own.OwnSince(len(run.counts())), proposes=False),
    "own_due": _of_own_items(lambda run: own.OwnDue(len(run.counts())), proposes=False),
    "together": Source(
        "items of one basket",
        lambda run: NearestItems(run.matrix("together"), FLOOR),
        lambda on: together(on.training, on.num_items),
        "together",
        ("neighbours.safetensors",),
        listed=False,
        when=lambda config: config.data.split.baskets,
    ),
    "successors": Source(
        "similarities of items",
        lambda run: NearestItems(run.matrix("successors"), SUCCESSOR_FLOOR),
        lambda on: successors(on.training, on.num_items),
        "item_knn",
        ("successors.safetensors",),
        listed=False,
        proposes=False,
    ),
    "item_knn": Source(
        "similarities of items",
        lambda run: NearestItems(run.matrix("item_knn"), FLOOR),
        lambda on: similarities(on.training, on.num_items),
        "item_knn",
        ("neighbours.safetensors",),
    ),
    "ease": Source(
        "weights of items",
        lambda run: NearestItems(run.matrix("ease"), FLOOR),
        lambda on: ease.item_weights(on.training, on.num_items),
        "ease",
        ("weights.safetensors",),
        most_items=ease.MOST_ITEMS,
        optional=True,
    ),
    "user_knn": Source(
        "training histories",
        lambda run: NearestUsers(run.training(), len(run.counts()), run.user_rows()),
        optional=True,
    ),
    "content": Source(
        "vectors of items",
        lambda run: ContentSimilarity(run.arrays("content")["items"]),
        stage="vectors",
        file=("vectors.safetensors",),
        listed=False,
        optional=True,
    ),
    "passed": Source(
        "impressions of users",
        lambda run: taste.Passed(
            run.shown().users, run.shown().items, run.shown().clicked, len(run.counts()), run.user_rows()
        ),
        stage="prepare",
        file=("impressions.parquet",),
        listed=False,
        optional=True,
        when=_with_impressions,
    ),
    "taste": Source(
        "impressions of users",
        lambda run: taste.Tastes(run.arrays("taste")["users"], run.arrays("taste")["items"], run.user_rows()),
        _tastes,
        "taste",
        ("tastes.safetensors",),
        reads=("vectors", "descriptions", "impressions"),
        listed=False,
        optional=True,
        when=_with_impressions,
    ),
    "ranker": Source(
        "the sequential ranker",
        lambda run: RankerScores(run.ranker()),
        stage="ranker",
        file=("best", "model.safetensors"),
    ),
}
LISTED = tuple(name for name, source in SOURCES.items() if source.listed)
BASELINES = tuple(name for name in LISTED if SOURCES[name].most_items is None)  # what `adagrpo evaluate` measures too
FITTED = tuple(dict.fromkeys(str(source.stage) for source in SOURCES.values() if source.fit is not None))  # stages


def listed(config: Config) -> list[str]:
    """Return the sources that are lists."""
    return [name for name in LISTED if SOURCES[name].when(config)]


def baselines(config: Config) -> list[str]:
    """Return those of `BASELINES` that are lists of a run."""
    return [name for name in listed(config) if name in BASELINES]


def fused(config: Config) -> list[str]:
    """Return the sources of fused lists, in the order of features."""
    return [name for name, source in reversed(SOURCES.items()) if source.fused and source.when(config)]
