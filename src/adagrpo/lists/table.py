"""The table of sources: lists that no policy has a part in, and what a fused list combines with the policy.

A row says what a source needs, how it is fitted and how it is loaded. The order is that of what they need at serving
time, the least first. A new one is a module with what it computes, and a row here.
"""

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
    """What a run has of its sources."""

    def counts(self) -> NDArray[np.int64]:
        """(V,) training interactions of each item."""
        ...

    def matrix(self, source: str) -> Matrix:
        """What `fit` of a source gave."""
        ...

    def ranker(self) -> SequentialRanker:
        """The sequential ranker of the run."""
        ...


@dataclass(frozen=True)
class Source:
    """A source of items.

    Attributes:
        needs: what must be there at serving time, in words.
        load: makes it of what a run has.
        fit: of the item sequences of the training split and `V`, the matrix that the run keeps; None: it keeps none.
        stage: in whose folder that is kept, or which it reads otherwise; None: training data alone.
        file: what is read of that folder.
        most_items: the largest catalogue that it is fitted to; None: any.
        listed: it is a list by itself.
        fused: it gives fused lists a feature.
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
