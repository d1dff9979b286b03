"""Evaluation on what users were shown: at random, or by the shop after validation.

A user's AUC is the share of (clicked, not clicked) pairs that a list orders correctly. Of pairs that were both shown,
which item is shown more often plays no part. Where what was shown does not depend on the user
(`adagrpo.evaluation.exposure_dependence`), clicks on what is in his list count too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from adagrpo.data.columns import CLICKED, ITEM, POSITION, TIMESTAMP, USER
from adagrpo.data.exposures import RANDOM, telling
from adagrpo.data.prepared import SHOWN_LATER, TARGET
from adagrpo.evaluation.exposure_dependence import exchanged, independent, weights_of_shown
from adagrpo.evaluation.reward_quality import shown_quality
from adagrpo.lists import Query, Recommender
from adagrpo.lists.names import START
from adagrpo.pipeline.files import RunData
from adagrpo.statistics import Interval, mean_interval
from adagrpo.types import Cases

MOST_USERS, LEAST = 5_000, 20  # sampled users; fewest users with another order for a test
BATCH = 64
TOP = 10
TELLING = ("item_knn", "user_knn", "ranker", START)  # lists of the user's past that may tell what he was shown


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

    def outdone(self, names: Sequence[str], clicks: Mapping[str, float]) -> dict[str, str]:
        """Return the lists that one with no fewer clicks is significantly above, and by which.

        One-sided, over all others of a list (Bonferroni): multiple comparisons with the best (Hsu 1984).
        """
        level = 1 - 0.1 / max(1, len(names) - 1)
        found = {}
        for name in names:
            above = [other for other in names if clicks[other] >= clicks[name]]
            above = [other for other in above if np.count_nonzero(self.auc[name] != self.auc[other]) >= LEAST]
            above = [other for other in above if self.against(name, other, level=level).high < 0]
            if above:
                found[name] = max(above, key=lambda other: float(self.auc[other].mean()))
        return found


class Independence(NamedTuple):
    """Whether what a shop shows depends on the user."""

    found: bool  # it does not
    told: dict[str, Interval]  # by list: the share of exchanged pairs in which it prefers what happened


def random_order(data: RunData, lists: Iterable[tuple[str, Recommender]], judge: str = RANDOM) -> RandomOrder | None:
    """Evaluate lists on at most `MOST_USERS` users of a prepared file; None without a usable pair."""
    shown = _shown(data, judge)
    if shown is None:
        return None
    shown = telling(shown, data.training.lengths, MOST_USERS, np.random.default_rng([data.config.seed, 5]))
    if shown.is_empty():
        return None
    rows, items = shown[USER].to_numpy(), shown[ITEM].to_numpy().astype(np.int64)
    parts = np.split(items, np.flatnonzero(np.diff(rows)) + 1)
    users = np.unique(rows)
    queries = _queries(data, users)
    found = {}
    for name, served in lists:
        quality = shown_quality(_scores(served, queries, parts), shown[CLICKED].to_numpy(), rows)
        clicked = ~np.isnan(quality.auc)
        own = np.searchsorted(users, rows[clicked])
        found[name] = np.bincount(own, quality.auc[clicked]) / np.bincount(own)
    return RandomOrder(found)


def independence(data: RunData, lists: Iterable[tuple[str, Recommender]]) -> Independence | None:
    """Test whether what was shown after validation depends on the user; None without times."""
    shown = _shown(data, SHOWN_LATER)
    if shown is None or TIMESTAMP not in shown.columns:
        return None
    generator = np.random.default_rng([data.config.seed, 6])
    known = _some_users(data, shown, generator)
    validated = pl.read_parquet(data.prepared / "validation.parquet")  # and what each user took before the test
    until = validated.filter(pl.col(POSITION) <= pl.col(POSITION).filter(pl.col(TARGET)).max().over(USER))
    visitors = known[USER].unique().sort().to_numpy()
    trained = data.training.rows(visitors)  # a long log is not read for some of its users
    before = pl.DataFrame({USER: np.repeat(visitors, trained.lengths), ITEM: trained.values})
    had = pl.concat([before, until.select(USER, ITEM)], how="vertical_relaxed")
    pairs = exchanged(known, had, generator)
    if not len(pairs.users):
        return None
    asked = np.stack([np.repeat(pairs.users, 2, axis=1), np.tile(pairs.items, 2)], axis=-1).reshape(-1, 2)  # (4 P, 2)
    rows, where = np.unique(asked, axis=0, return_inverse=True)
    users, first = np.unique(rows[:, 0], return_index=True)
    queries, parts = _queries(data, users), np.split(rows[:, 1], first[1:])
    happened = {}
    for name, served in lists:
        scores = _scores(served, queries, parts).astype(np.float64)[where.ravel()]
        happened[name] = pairs.happened(scores.reshape(-1, 2, 2))
    return Independence(*independent(happened))


def clicks_of_lists(data: RunData, lists: Iterable[tuple[str, Recommender]], judge: str) -> dict[str, float]:
    """Return by list the share of its first ten that users would click, of what each was shown; else not clicked."""
    shown = _shown(data, judge)
    assert shown is not None
    shown = _some_users(data, shown, np.random.default_rng([data.config.seed, 7]))
    rows, items = (shown[name].to_numpy().astype(np.int64) for name in (USER, ITEM))
    users, own = np.unique(rows, return_inverse=True)  # of each row
    weights, clicked = weights_of_shown(items), shown[CLICKED].to_numpy()
    queries, found = _queries(data, users), dict[str, float]()
    for name, served in lists:
        listed = np.full((len(users), TOP), -1)
        for first in range(0, len(users), BATCH):
            for row, answer in enumerate(served.recommend(queries[first : first + BATCH]), first):
                top = served.known(answer.items[:TOP])[0]
                listed[row, : len(top)] = top
        counted = np.where((listed[own] == items[:, None]).any(axis=1), weights, 0.0)
        rate = counted[clicked].sum() / counted.sum() if counted.any() else 0.0
        found[name] = float(rate * np.isin(listed, items).mean())
    return found


def _shown(data: RunData, judge: str) -> pl.DataFrame | None:
    path = data.prepared / judge
    if not path.is_file():
        return None
    shown = pl.read_parquet(path)
    if data.eligible is not None:
        shown = shown.filter(pl.Series(data.eligible.items.cpu().numpy())[shown[ITEM]])
    return shown


def _some_users(data: RunData, shown: pl.DataFrame, generator: np.random.Generator) -> pl.DataFrame:
    users = shown[USER].unique().sort().to_numpy()
    drawn = generator.permutation(users[data.training.lengths[users] > 0])[:MOST_USERS]
    return shown.filter(pl.col(USER).is_in(drawn.tolist())).sort(USER, ITEM)


def _queries(data: RunData, users: NDArray[np.integer]) -> list[Query]:
    cases = Cases(users.astype(np.int32), data.training.rows(users), np.zeros(len(users), np.int32))
    return data.queries_of(cases, np.arange(len(users)))


def _scores(served: Recommender, queries: list[Query], parts: list[NDArray[np.int64]]) -> NDArray[np.float32]:
    """Return each user's scores of his items, end to end."""
    scores = []
    for first in range(0, len(queries), BATCH):
        some = [torch.from_numpy(part) for part in parts[first : first + BATCH]]
        padded = torch.nn.utils.rnn.pad_sequence(some, batch_first=True, padding_value=-1)
        said = served.order_scores(queries[first : first + BATCH], padded).cpu()
        scores.append(said[padded >= 0].numpy())
    return np.concatenate(scores)
