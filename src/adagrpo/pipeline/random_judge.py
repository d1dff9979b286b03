"""Evaluation on what users were shown: at random, free of the logging policy's bias, or by the shop after validation.

A user's AUC is the share of (clicked, not clicked) pairs that a list orders correctly. Of pairs that were both shown,
which item is shown more often plays no part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from adagrpo.data.columns import CLICKED, ITEM, USER
from adagrpo.data.exposures import RANDOM, telling
from adagrpo.evaluation.reward_quality import shown_quality
from adagrpo.evaluation.statistics import Interval, mean_interval
from adagrpo.lists import Recommender
from adagrpo.lists.names import START
from adagrpo.pipeline.files import RunData
from adagrpo.types import Cases

MOST_USERS, LEAST = 5_000, 20  # sampled users; fewest users with another order for a test
BATCH = 64


class RandomOrder(NamedTuple):
    """AUC per user by list."""

    auc: Mapping[str, NDArray[np.float64]]  # (U,) by list

    def against(self, name: str, other: str = START, *, level: float = 0.95) -> Interval:
        """Return the mean difference in AUC from another list, with its interval."""
        return mean_interval(self.auc[name] - self.auc[other], level=level)

    def worse(self, names: Sequence[str], other: str = START) -> list[str]:
        """Return the lists significantly worse than another one (Bonferroni), if `LEAST` users' orders differ."""
        level = 1 - 0.05 / max(1, len(names))
        moved = {name: np.count_nonzero(self.auc[name] != self.auc[other]) for name in names}
        return [name for name in names if moved[name] >= LEAST and self.against(name, other, level=level).high < 0]


def random_order(data: RunData, lists: Iterable[tuple[str, Recommender]], judge: str = RANDOM) -> RandomOrder | None:
    """Evaluate lists by name on at most `MOST_USERS` users of a prepared file; None if none has a usable pair."""
    path = data.prepared / judge
    if not path.is_file():
        return None
    shown = pl.read_parquet(path)
    if data.eligible is not None:
        shown = shown.filter(pl.Series(data.eligible.items.cpu().numpy())[shown[ITEM]])
    shown = telling(shown, data.training.lengths, MOST_USERS, np.random.default_rng([data.config.seed, 5]))
    if shown.is_empty():
        return None
    rows, items = shown[USER].to_numpy(), shown[ITEM].to_numpy().astype(np.int64)
    parts = np.split(items, np.flatnonzero(np.diff(rows)) + 1)
    users = np.unique(rows)
    nobody = np.zeros(len(users), np.int32)
    cases = Cases(users.astype(np.int32), data.training.rows(users), nobody)
    queries = data.queries_of(cases, np.arange(len(users)))
    found = {}
    for name, served in lists:
        scores = []
        for first in range(0, len(users), BATCH):
            some = [torch.from_numpy(part) for part in parts[first : first + BATCH]]
            padded = torch.nn.utils.rnn.pad_sequence(some, batch_first=True, padding_value=-1)
            said = served.order_scores(queries[first : first + BATCH], padded).cpu()
            scores.append(said[padded >= 0].numpy())
        quality = shown_quality(np.concatenate(scores), shown[CLICKED].to_numpy(), rows)
        clicked = ~np.isnan(quality.auc)
        own = np.searchsorted(users, rows[clicked])
        found[name] = np.bincount(own, quality.auc[clicked]) / np.bincount(own)
    return RandomOrder(found)
