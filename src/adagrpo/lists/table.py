"""The table of sources, ordered by what they need at serving time, the least first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from adagrpo.lists import ease
from adagrpo.lists.sources import (
    FLOOR,
    SUCCESSOR_FLOOR,
    CandidateSource,
    NearestItems,
    Popularity,
    RankerScores,
    similarities,
    successors,
)
from adagrpo.rewards.sequential import SequentialRanker
from adagrpo.types import Ragged

__all__ = ["BASELINES", "FITTED", "FUSED", "LISTED", "SOURCES", "Fitted", "Source"]

Matrix = sparse.csr_array  # (V, V) float32


class Fitted(Protocol):
    """The fitted parts of a run's sources."""

    def counts(self) -> NDArray[np.int64]:
        """Return (V,) training interactions of each item."""
        ...

    def matrix(self, source: str) -> Matrix:
        """Return the matrix that a source's `fit` returned."""
        ...

    def ranker(self) -> SequentialRanker:
        """Return the sequential ranker of the run."""
        ...


@dataclass(frozen=True)
class Source:
    """A source of items.

    Attributes:
        load: builds it from a run.
        fit: computes the run's matrix from training sequences and `V`; None: there is none.
        stage: the stage whose folder holds its file; None: it needs training data alone.
        file: path in that folder.
        most_items: the largest catalogue that it is fitted to; None: any.
        listed: is a list by itself.
        fused: is a feature of fused lists.
        proposes: its best items are candidates of fused lists.
    """

    needs: str
    load: Callable[[Fitted], CandidateSource]
    fit: Callable[[Ragged, int], Matrix] | None = None
    stage: str | None = None
    file: tuple[str, ...] = ()
    most_items: int | None = None
    listed: bool = True
    fused: bool = True
    proposes: bool = True


SOURCES: Mapping[str, Source] = {
    "popularity": Source("counts", lambda run: Popularity(run.counts()), proposes=False),
    "successors": Source(
        "similarities of items",
        lambda run: NearestItems(run.matrix("successors"), SUCCESSOR_FLOOR),
        successors,
        "item_knn",
        ("successors.safetensors",),
        listed=False,
        proposes=False,
    ),
    "item_knn": Source(
        "similarities of items",
        lambda run: NearestItems(run.matrix("item_knn"), FLOOR),
        similarities,
        "item_knn",
        ("neighbours.safetensors",),
    ),
    "ease": Source(
        "weights of items",
        lambda run: NearestItems(run.matrix("ease"), FLOOR),
        ease.item_weights,
        "ease",
        ("weights.safetensors",),
        most_items=ease.MOST_ITEMS,
        fused=False,
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
FUSED = tuple(name for name in reversed([*SOURCES]) if SOURCES[name].fused)  # in the order of features
FITTED = tuple(dict.fromkeys(str(source.stage) for source in SOURCES.values() if source.fit is not None))  # stages
