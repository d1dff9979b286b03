"""LightGBM LambdaRank on engineered features (Burges 2010).

A group is a user's candidates at one time: a logged next item or impressions with clicks, plus sampled items that the
user does not have. Negatives come in turn from the uniform distribution, from popularity and from neighbours of the
history. Features leave the group's user out of all counts, see `adagrpo.rewards.features`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adagrpo.config.models import NEGATIVE_SOURCES, NegativeSource
from adagrpo.data.pairs import common_users
from adagrpo.data.sequences import basket_starts, pad
from adagrpo.rewards.features import FEATURES, Features
from adagrpo.rewards.model_files import require
from adagrpo.trainer.ranker_fit import Impressions
from adagrpo.trainer.task import Report
from adagrpo.types import Cases, Ints, Ragged

if TYPE_CHECKING:
    from lightgbm import Booster, Dataset

GROUPS_AT_ONCE = 20_000


class RankingGroups(NamedTuple):
    """`Q` groups of up to `N` candidates."""

    histories: Ints  # (Q, T) padded on the right with 0
    lengths: Ints  # (Q,)
    users: Ints  # (Q,)
    items: Ints  # (Q, N), -1 where there is none
    chosen: NDArray[np.bool_]  # (Q, N)

    def rows(self, kept: slice | NDArray[np.bool_]) -> RankingGroups:
        """Select groups."""
        rows = (self.histories[kept], self.lengths[kept], self.users[kept])
        return RankingGroups(*rows, self.items[kept], self.chosen[kept])


class NegativeSampler:
    """Sampler of items that a user does not have."""

    def __init__(
        self, training: Ragged, num_items: int, seed: int, sources: Sequence[NegativeSource] = NEGATIVE_SOURCES
    ) -> None:
        self.training, self.num_items = training, num_items
        self.sources = tuple(NEGATIVE_SOURCES.index(source) for source in sources)
        self.generator = np.random.default_rng([seed, 1])
        self.near = common_users(training, num_items)
        owners = np.repeat(np.arange(len(training), dtype=np.int64), training.lengths)
        self.has = np.unique(owners * num_items + training.values)  # ascending keys of (user, item)

    # users (Q,), histories (Q, T), lengths (Q,), avoid (Q, K)
    def draw(self, users: Ints, histories: Ints, lengths: Ints, avoid: Ints, count: int) -> Ints:
        """Draw (Q, count) items; -1 for a repeated, owned or avoided item, or if there is no neighbour."""
        shape = (len(users), count)
        by_popularity = self.training.values[self.generator.integers(0, max(1, len(self.training.values)), shape)]
        anchor = (self.generator.random(shape) * lengths[:, None]).astype(np.int64)
        anchors = np.take_along_axis(histories, anchor, 1)
        starts, degrees = self.near.indptr[anchors], np.diff(self.near.indptr)[anchors]
        index = (self.generator.random(shape) * degrees).astype(np.int64)
        neighbours = self.near.indices[np.minimum(starts + index, max(0, len(self.near.indices) - 1))]
        kind = np.resize(self.sources, count)
        drawn = np.where(kind == 0, self.generator.integers(0, self.num_items, shape), by_popularity)
        drawn = np.where(kind == 2, np.where(degrees > 0, neighbours, -1), drawn).astype(np.int64)
        keys = users[:, None] * self.num_items + drawn
        owned = self.has[np.searchsorted(self.has, keys).clip(max=max(0, len(self.has) - 1))] == keys
        # no item twice in a group: a chosen one would otherwise be its own negative
        ordered = np.sort(drawn, axis=1)
        order = np.argsort(drawn, axis=1, kind="stable")
        again = np.zeros(shape, dtype=np.bool_)
        np.put_along_axis(again, order, np.pad(ordered[:, 1:] == ordered[:, :-1], ((0, 0), (1, 0))), 1)
        met = (drawn[:, :, None] == avoid[:, None, :]).any(2)
        return np.where(owned | met | again, -1, drawn)


def logged_groups(sampler: NegativeSampler, *, positions: int, negatives: int, max_history: int) -> RankingGroups:
    """Build groups of each user's last `positions` training interactions; histories end before the basket."""
    training = sampler.training
    counts = np.clip(training.lengths - 1, 0, positions)
    users = np.repeat(np.arange(len(training)), counts)
    back = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)  # 0 is the last interaction
    ends = training.offsets[users + 1] - 1 - back
    starts = basket_starts(training)[ends]
    later = starts > training.offsets[users]
    users, ends, starts = users[later], ends[later], starts[later]
    histories, lengths = _histories(training, users, starts, max_history)
    targets = training.values[ends].astype(np.int64)[:, None]
    drawn = sampler.draw(users, histories, lengths, targets, negatives)
    return _grouped(sampler, histories, lengths, users, targets, np.ones_like(targets, dtype=np.bool_), drawn)


def shown_groups(
    sampler: NegativeSampler, shown: Impressions, *, negatives: int, max_history: int, most_shown: int = 50
) -> RankingGroups:
    """Build groups from items shown between two interactions, if any was clicked, and sampled ones.

    `shown` is sorted by user and history length. The first `most_shown` items of a group are kept; repeats are merged,
    clicked if any was.
    """
    training = sampler.training
    users = np.repeat(np.arange(len(shown.offsets) - 1), np.diff(shown.offsets))
    starts = np.flatnonzero(
        np.diff(users, prepend=-1).astype(bool) | np.diff(shown.history_lengths, prepend=-1).astype(bool)
    )
    every = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(users))))
    all_items = shown.items.astype(np.int64)
    order = np.lexsort((np.arange(len(all_items)), all_items, every))
    repeats = np.flatnonzero(
        np.diff(every[order], prepend=-1).astype(bool) | np.diff(all_items[order], prepend=-1).astype(bool)
    )
    first = order[repeats]  # the stable order has the first of each item in front
    ever = np.logical_or.reduceat(shown.clicked[order], repeats) if len(repeats) else np.zeros(0, np.bool_)
    back = first.argsort()
    group, shown_items, clicked = every[first[back]], all_items[first[back]], ever[back]
    index = np.arange(len(group)) - np.searchsorted(group, group)
    kept = index < most_shown
    items = np.full((len(starts), most_shown), -1, np.int64)
    chosen = np.zeros(items.shape, dtype=np.bool_)
    items[group[kept], index[kept]] = shown_items[kept]
    chosen[group[kept], index[kept]] = clicked[kept]
    owner, seen = users[starts], shown.history_lengths[starts]
    good = chosen.any(1) & (seen <= training.lengths[owner])
    owner, seen, items, chosen = owner[good], seen[good], items[good], chosen[good]
    histories, lengths = _histories(training, owner, training.offsets[owner] + seen, max_history)
    drawn = sampler.draw(owner, histories, lengths, items, negatives)
    return _grouped(sampler, histories, lengths, owner, items, chosen, drawn)


def validation_groups(sampler: NegativeSampler, cases: Cases, *, negatives: int, max_history: int) -> RankingGroups:
    """Build groups from evaluation cases and sampled items."""
    padded = pad(cases.histories, np.arange(len(cases)), max_history)
    histories, lengths = padded.items.numpy(), padded.lengths.numpy()
    users, targets = cases.users.astype(np.int64), cases.targets.astype(np.int64)[:, None]
    drawn = sampler.draw(users, histories, lengths, targets, negatives)
    return _grouped(sampler, histories, lengths, users, targets, np.ones_like(targets, dtype=np.bool_), drawn)


def exposed_groups(
    sampler: NegativeSampler,
    users: Ints,  # (N,) ascending
    items: Ints,  # (N,)
    clicked: NDArray[np.bool_],  # (N,)
    *,
    max_history: int,
) -> RankingGroups:
    """Build a group per user from held-out impressions."""
    owners, row, counts = np.unique(users, return_inverse=True, return_counts=True)
    index = np.arange(len(users)) - (np.cumsum(counts) - counts)[row]
    table = np.full((len(owners), int(counts.max(initial=1))), -1, np.int64)
    chosen = np.zeros(table.shape, dtype=np.bool_)
    table[row, index], chosen[row, index] = items, clicked
    some = chosen.any(1)
    owners, table, chosen = owners[some], table[some], chosen[some]
    histories, lengths = _histories(sampler.training, owners, sampler.training.offsets[owners + 1], max_history)
    return _grouped(sampler, histories, lengths, owners, table, chosen, table[:, :0])


# (Q, T) items before the indices `ends` of the training values, and (Q,) lengths
def _histories(training: Ragged, users: Ints, ends: Ints, max_history: int) -> tuple[Ints, Ints]:
    lengths = np.minimum(ends - training.offsets[users], max_history)
    columns = np.arange(int(lengths.max(initial=1)))
    real = columns < lengths[:, None]
    source = np.where(real, (ends - lengths)[:, None] + columns, 0)
    return np.where(real, training.values[source], 0).astype(np.int64), lengths


def _grouped(
    sampler: NegativeSampler,
    histories: Ints,
    lengths: Ints,
    users: Ints,
    items: Ints,
    chosen: NDArray[np.bool_],
    drawn: Ints,
) -> RankingGroups:
    """Shuffle given and drawn candidates (LightGBM's NDCG keeps the order of ties); drop groups without a negative."""
    items = np.concatenate([items, drawn], axis=1)
    chosen = np.pad(chosen, ((0, 0), (0, drawn.shape[1])))
    order = sampler.generator.random(items.shape).argsort(1)
    items, chosen = np.take_along_axis(items, order, 1), np.take_along_axis(chosen, order, 1)
    against = np.asarray(((items >= 0) & ~chosen).any(1))
    return RankingGroups(histories, lengths, users, items, chosen).rows(against)


@dataclass(frozen=True)
class Fitted:
    """A fitted model."""

    model: Booster
    trees: int
    ndcg: float | None  # at 10, among the sampled items of the validation groups, if there are any
    rows: int
    groups: int


def fit_lambdarank(
    features: Features,
    groups: RankingGroups,
    validation: RankingGroups | None,
    *,
    trees: int,  # maximum; stops after 50 without improvement
    leaves: int,
    learning_rate: float,
    minimum_leaf: int,  # rows per leaf
    seed: int,
    threads: int,
    report: Report = lambda done, total, values: None,
) -> Fitted:
    """Fit with early stopping on validation NDCG@10, without validation all `trees`; deterministic."""
    require("lightgbm", "reward")
    import lightgbm

    parameters = {
        "objective": "lambdarank",
        "metric": "ndcg",
        "eval_at": [10],
        "label_gain": [0, 1],
        "lambdarank_truncation_level": 20,
        "num_leaves": leaves,
        "learning_rate": learning_rate,
        "min_data_in_leaf": minimum_leaf,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": threads,
        "max_bin": 63,
        "verbosity": -1,
    }

    def after_tree(state: Any) -> None:  # a named tuple that LightGBM does not type
        measured = state.evaluation_result_list
        found = {"ndcg@10": float(measured[0][2])} if measured else {}
        report(state.iteration + 1 - state.begin_iteration, trees, found)

    train = _dataset(features, groups, parameters)
    held_out = [] if validation is None else [_dataset(features, validation, parameters, train)]
    model = lightgbm.train(
        parameters,
        train,
        num_boost_round=trees,
        valid_sets=held_out,
        valid_names=["validation"] * len(held_out),
        callbacks=[*(lightgbm.early_stopping(50, verbose=False) for _ in held_out), after_tree],
    )
    ndcg = float(model.best_score["validation"]["ndcg@10"]) if held_out else None
    fitted = model.best_iteration if held_out else trees
    return Fitted(model, fitted, ndcg, int((groups.items >= 0).sum()), len(groups.items))


def _dataset(
    features: Features, groups: RankingGroups, parameters: dict[str, object], reference: Dataset | None = None
) -> Dataset:
    import lightgbm

    tables = []
    for first in range(0, len(groups.items), GROUPS_AT_ONCE):
        part = groups.rows(slice(first, first + GROUPS_AT_ONCE))
        tables.append(features.table(part.histories, part.lengths, part.items, part.users)[part.items >= 0])
    real = groups.items >= 0
    return lightgbm.Dataset(
        np.concatenate(tables),
        label=groups.chosen[real].astype(np.float32),
        group=real.sum(1),
        feature_name=list(FEATURES),
        params=parameters,
        reference=reference,
    )
