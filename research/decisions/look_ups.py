"""Would further look-ups, as winners of competitions used them, help a fused list? On validation cases alone.

    python -m research.decisions.look_ups --out runs/decisions --sets lastfm amazon-office
    python -m research.decisions.look_ups --table

`--out` has the runs of `research.decisions.sets`, or any with a policy and a ranker, in folders SET-SEED. Orders,
without a reward, are cross-fitted over users as in the package. To the features of the package's list, those that its
rule keeps, each of these is added, alone; a row has what that gains of NDCG@10, with 95 % intervals over users:

    item_knn last, largest, mean    similarities to the last item (of known baskets: items, their mean), to that item
                                    of the history which is nearest, and their mean; the package has the decayed sum
    successors last, largest        the same of what follows an item
    lag 2, lag 3                    what followed two positions after the last item but one, three after the one before
    two hops                        RP3β (Paudel et al. 2017), α 1, β .5: item, users, items; decayed sum
    ranks                           each feature's -log(5 + rank) in the weighted sum; the network reads them anyway
    items' age, last week, gap      where times are known: log days since an item's first interaction; log of its share
                                    of the last seven days; log days since the user's last, times popularity's logarithm
    kept                            all those that the package's rule for optional features keeps, on the same cases,
                                    so that their gain is rather too high

Primary: `kept`. Users of LastFM (1,090) and online-retail (1,362) find about five thousandths in four trials of five,
Office (4,905) three, Scientific (8,317) one and a half. One is built if it gains significantly, Holm over a set's
features, on one of four sets, and loses so on none; it is then tested on the other sets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from adagrpo.data.pairs import users_of_items
from adagrpo.lists.correction import inputs_of
from adagrpo.lists.fit_fusion import fit_weights
from adagrpo.lists.names import FUSE_WITHOUT_REWARD, START, ListName
from adagrpo.lists.sources import DECAY, FLOOR, SUCCESSOR_FLOOR, nearest_of, popular_shares
from adagrpo.lists.table import SOURCES
from adagrpo.metrics import ndcg
from adagrpo.pipeline import Run
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.list_makers import ListMaker
from adagrpo.pipeline.stages.fuse import validation_cases
from adagrpo.statistics import holm, mean_interval
from adagrpo.types import Cases, Ragged
from research.command import run
from research.decisions.features import fit_sources
from research.decisions.richer import choices_in
from research.decisions.sets import arguments, measured

RESULTS = Path(__file__).with_name("look_ups.jsonl")
BETA = 0.5  # of popularity in RP3β
WEEK = 7.0  # days

Numbers = NDArray[np.float32]
Matrix = sparse.csr_array  # (V, V)


def main() -> None:
    """Measure what is missing, or print the table of what is there."""
    given = arguments(__doc__).parse_args()
    print(table(measured(RESULTS, given, lambda name, seed: _measure(Run.open(given.out / f"{name}-{seed}")))))


def _measure(made: Run) -> dict[str, Any]:
    fit_sources(made)
    data = RunData(made)
    cases, maker, seed = validation_cases(data), ListMaker(Models(data)), made.config.seed
    fusion = maker.fusion(ListName(START, FUSE_WITHOUT_REWARD))
    choices, names = choices_in(maker, fusion, data, cases), list(fusion.features)
    optional = [name for name in names if name in SOURCES and SOURCES[name].optional]
    today = fit_weights(choices, names, names, seed, optional=optional)
    used = list(today.weights.weights)

    there = torch.from_numpy(choices.items >= 0)
    columns = dict(_look_ups(data, maker, cases, choices.items))
    of_ranks = inputs_of(torch.from_numpy(choices.features), there)[..., 2 * len(names) :].numpy()
    added = {name: [name] for name in columns} | {"ranks": [f"rank of {name}" for name in used]}
    columns |= {f"rank of {name}": of_ranks[..., column] for column, name in enumerate(names)}
    wide = choices._replace(
        features=np.concatenate([choices.features, *(column[..., None] for column in columns.values())], axis=-1)
    )
    names += columns
    orders = {label: fit_weights(wide, names, [*used, *more], seed).ranks for label, more in added.items()}
    alone = [label for label in added if label != "ranks"]
    kept = fit_weights(wide, names, [*used, *alone], seed, optional=alone)
    orders["kept"] = kept.ranks

    before = choices.case_weights * ndcg(today.ranks, 10, cases.sizes)
    gained = {
        label: mean_interval(choices.case_weights * ndcg(ranks, 10, cases.sizes) - before)
        for label, ranks in orders.items()
    }
    return {
        "cases": len(cases),
        "ndcg@10": float(before.mean()),
        "features": used,
        "rule": [name for name in alone if name in kept.weights.weights],
        "gained": {label: list(interval) for label, interval in gained.items()},
    }


def _look_ups(data: RunData, maker: ListMaker, cases: Cases, items: NDArray[np.int64]) -> Iterator[tuple[str, Numbers]]:
    """Names and (N, C) columns of features of candidates (N, C)."""
    training = data.training
    near, follow = maker.matrix("item_knn"), maker.matrix("successors")
    every = cases.histories
    yield "item_knn last", _column(near, every, items, _mean_of(0), FLOOR)
    yield "item_knn largest", _column(near, every, items, lambda found, ago: found.max(axis=0), FLOOR)
    yield "item_knn mean", _column(near, every, items, lambda found, ago: found.mean(axis=0), FLOOR)
    yield "successors last", _column(follow, every, items, _mean_of(0), SUCCESSOR_FLOOR)
    yield "successors largest", _column(follow, every, items, lambda found, ago: found.max(axis=0), SUCCESSOR_FLOOR)
    if training.baskets is None:
        for lag in (2, 3):
            after = _followers_at(training, data.num_items, lag)
            yield f"lag {lag}", _column(after, every, items, _mean_of(lag - 1), SUCCESSOR_FLOOR)
    hops = _two_hops(training, data.num_items)
    yield "two hops", _column(hops, every, items, lambda found, ago: (DECAY**ago).astype(np.float32) @ found, FLOOR)
    if training.days is None or cases.days is None:
        return
    assert every.days is not None, "the histories are of the same log"
    since, inside = training.days.max() - training.days, items.clip(min=0)
    age = np.zeros(data.num_items)
    np.maximum.at(age, training.values, since)
    yield "items' age", np.log1p(age).astype(np.float32)[inside]
    popular = popular_shares(maker.counts())
    of_week = np.bincount(training.values[since <= WEEK], minlength=data.num_items)
    yield "last week", np.log(popular_shares(of_week)).astype(np.float32)[inside]
    gap = np.log1p(np.maximum(0.0, cases.days - every.days[every.offsets[1:] - 1])).astype(np.float32)
    yield "gap", gap[:, None] * np.log(popular).astype(np.float32)[inside]


def _mean_of(position: int) -> Callable[[Numbers, NDArray[np.int64]], Numbers]:
    def mean(found: Numbers, ago: NDArray[np.int64]) -> Numbers:
        there = found[ago == position]
        return there.mean(axis=0) if len(there) else np.zeros(found.shape[1], np.float32)

    return mean


def _column(
    matrix: Matrix,
    histories: Ragged,
    items: NDArray[np.int64],
    summary: Callable[[Numbers, NDArray[np.int64]], Numbers],
    floor: float,
) -> Numbers:
    """(N, C) logarithms of a summary over the history; `ago` (H,) counts items or, if known, baskets from the end."""
    column = np.zeros(items.shape, np.float32)
    for row, candidates in enumerate(items):
        there, history = candidates >= 0, histories.row(row)
        part = slice(*histories.offsets[row : row + 2])
        number = np.arange(len(history)) if histories.baskets is None else histories.baskets[part]
        _, basket = np.unique(number, return_inverse=True)
        found = matrix[history][:, candidates[there]].toarray()
        column[row, there] = np.log(summary(found, basket[-1] - basket) + floor)
    return column


def _followers_at(training: Ragged, num_items: int, lag: int) -> Matrix:
    """(V, V) shares of what came `lag` positions after an item, as `successors` has them."""
    first = np.flatnonzero(training.values_after(lag) >= lag)
    pairs = training.values[first], training.values[first + lag]
    counts = sparse.coo_array((np.ones(len(first), np.float32), pairs), shape=(num_items, num_items)).tocsr()
    popular = np.sqrt(1.0 + counts.sum(axis=0))
    return sparse.csr_array(counts @ sparse.diags_array(1.0 / popular)).astype(np.float32)


def _two_hops(training: Ragged, num_items: int) -> Matrix:
    """(V, V) probabilities of the walk from an item over its users to another, over popularity to the power of `BETA`.

    In units of the mean over rows of their largest.
    """
    held = users_of_items(training, num_items)
    of_items = np.maximum(1.0, held.sum(axis=0))
    to_users = sparse.diags_array(1.0 / of_items) @ held.T
    to_items = sparse.diags_array(1.0 / np.maximum(1.0, held.sum(axis=1))) @ held
    walk = sparse.csr_array(to_users @ to_items @ sparse.diags_array(of_items**-BETA)).astype(np.float32)
    walk.sort_indices()
    kept = nearest_of([walk], num_items)
    return sparse.csr_array(kept / float(kept.max(axis=1).toarray().mean()))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """What each look-up gains of NDCG@10 on validation, thousandths; p of Holm over a set's; which the rule keeps."""
    labels = [*dict.fromkeys(label for row in rows for label in row["gained"] if label != "kept"), "kept"]
    titles = " | ".join(f"{row['set']} ({row['cases']:,})" for row in rows)
    lines = [f"| look-up | {titles} |", "|---|" + "--:|" * len(rows)]
    lines.append("| without, NDCG@10 | " + " | ".join(f"{row['ndcg@10']:.4f}" for row in rows) + " |")
    of_rows = [_cells(row) for row in rows]
    lines += [f"| {label} | " + " | ".join(cells.get(label, "–") for cells in of_rows) + " |" for label in labels]
    return "\n".join(lines)


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    """The texts of a row's look-ups, by name."""
    alone = [label for label in row["gained"] if label != "kept"]
    p_values = dict(zip(alone, holm([row["gained"][label][3] for label in alone]), strict=True))
    cells = {}
    for label, (mean, low, high, _) in row["gained"].items():
        cells[label] = f"{1000 * mean:+.1f} ({1000 * low:+.1f} to {1000 * high:+.1f})"
        cells[label] += f", p {p_values[label]:.3f}" if label in p_values else ""
        cells[label] += ", kept" if label in row["rule"] else ""
    return cells


if __name__ == "__main__":
    run(main)
