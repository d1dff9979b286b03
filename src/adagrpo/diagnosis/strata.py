"""Cuts cases into cells and measures the orders of the beam in each, beside what rankers that know nothing get there.

Three kinds of cells, which must not be confused:

    serving      by what is known when a case is served; a gain there is a gain that can be had
    target       by the logged item (popularity, exposure, difficulty for the policy): fair to the ranker, and not to
                 the policy where the cell is formed by its own failure
    circular     by the share of the beam that the ranker puts below the logged item, then evaluating the same ranker:
                 Tables 2 and 3 of AdaGRPO (Xu et al. 2026, arXiv 2606.08480)

In the last kind any ranker shines where it was lucky. We depart by giving a shuffled and a random ranker cells of their
own, formed in the same way; the difference to them is what the ranker knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from adagrpo import metrics
from adagrpo.diagnosis.orders import Floats, Ints, Lists, permuted, target_ranks
from adagrpo.evaluation.statistics import Interval, mean_interval, paired_difference
from adagrpo.objective import discriminability

__all__ = [
    "MIN_MOVED",
    "Cell",
    "Gains",
    "beam_discriminability",
    "bounded_interval",
    "circular_table",
    "discriminability_cells",
    "gains",
    "measure",
    "popularity_cells",
    "ranker_and_controls",
    "thirds",
]

METRICS = ("hr@10", "ndcg@10")
BANDS = (0.8, 0.95)
DRAWS = 5  # of each control; its cells are the union
MIN_MOVED = 20  # fewer cases that differ from 0 say nothing, and an interval of so few is too sure of itself

Gains = Mapping[str, Floats]  # metric -> (N,) one number a case


class Cell(NamedTuple):
    """Some of the cases."""

    name: str
    rows: NDArray[np.bool_]  # (N,)


def gains(ranks: Ints) -> dict[str, Floats]:
    """HR@10 and NDCG@10 of each case from the (N,) rank of its logged item."""
    return {"hr@10": metrics.hit_rate(ranks, 10), "ndcg@10": metrics.ndcg(ranks, 10)}


def thirds(name: str, values: Floats, *, digits: int = 2) -> list[Cell]:
    """Three cells of about equal size by a quantity, NaN in none; ties stay together, so that cells may be fewer.

    Example:
        >>> [(cell.name, cell.rows.sum()) for cell in thirds("x", np.array([1.0, 2.0, 3.0, 3.0]))]
        [('x low (≤ 2.00)', np.int64(2)), ('x middle', np.int64(2))]
    """
    known = ~np.isnan(values)
    if not known.any():
        return []
    low, high = np.quantile(values[known], [1 / 3, 2 / 3])
    if not digits:  # whole numbers: the edge is printed as it is, and the cells are the same
        low, high = np.floor([low, high])
    cells = [
        Cell(f"{name} low (≤ {low:.{digits}f})", known & (values <= low)),
        Cell(f"{name} middle", (values > low) & (values <= high)),
        Cell(f"{name} high (> {high:.{digits}f})", values > high),
    ]
    return [cell for cell in cells if cell.rows.any()]


def popularity_cells(
    targets: Ints,  # (N,)
    counts: Ints,  # (V,)
) -> list[Cell]:
    """Head, middle and tail: the items that hold the upper, middle and lower third of the training interactions."""
    tail, below_head = metrics.tail_items(counts, 1 / 3), metrics.tail_items(counts, 2 / 3)
    masks = {"head": ~below_head, "middle": below_head & ~tail, "tail": tail}
    cells = [Cell(f"{name} ({int(mask.sum()):,} items)", mask[targets]) for name, mask in masks.items()]
    return [cell for cell in cells if cell.rows.any()]


def discriminability_cells(q: Floats) -> list[Cell]:
    """Bands of the share of negatives that a ranker puts below the logged item."""
    low, high = BANDS
    return [
        Cell(f"q ≥ {high:.2f}", q >= high),
        Cell(f"q {low:.2f} to {high:.2f}", (q >= low) & (q < high)),
        Cell(f"q < {low:.2f}", q < low),
    ]


def beam_discriminability(lists: Lists, rewards: Floats, target_reward: Floats) -> Floats:
    """(N,) share of the list's other items that score below the logged item; ties count one half."""
    none = torch.empty((len(lists.targets), 0))
    result = discriminability(
        torch.from_numpy(target_reward),
        torch.from_numpy(rewards),
        torch.from_numpy(lists.items),
        none.double(),
        none.long(),
        torch.from_numpy(lists.targets),
    )
    return np.asarray(result.q.numpy(), dtype=np.float64)


def bounded_interval(differences: Floats, weights: Floats | None = None, *, level: float = 0.95) -> Interval:
    """Normal interval of a mean difference whose p-value is 1 where fewer than `MIN_MOVED` cases differ from 0."""
    if not len(differences):
        return Interval(0.0, 0.0, 0.0, 1.0)
    interval = mean_interval(differences, weights, level=level)
    return interval if np.count_nonzero(differences) >= MIN_MOVED else interval._replace(p_value=1.0)


def measure(
    cells: Sequence[Cell],
    orders: Mapping[str, Gains],
    in_beam: NDArray[np.bool_],  # (N,)
    *,
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """A row a cell: cases, share with the logged item in the beam, each order's metrics, differences to `policy`.

    Args:
        cells: what to measure.
        orders: one of them `policy`; the differences of all others to it come with intervals.
        in_beam: where the list holds the logged item; elsewhere every order scores 0.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    table = []
    for cell in cells:
        row: dict[str, Any] = {"cell": cell.name, "cases": int(cell.rows.sum())}
        row["in_beam"] = float(in_beam[cell.rows].mean())
        row["orders"] = {
            name: {metric: float(values[metric][cell.rows].mean()) for metric in METRICS}
            for name, values in orders.items()
        }
        row["minus_policy"] = {
            name: {
                metric: paired_difference(
                    values[metric][cell.rows], orders["policy"][metric][cell.rows], resamples=resamples, seed=seed
                )._asdict()
                for metric in METRICS
            }
            for name, values in orders.items()
            if name != "policy"
        }
        table.append(row)
    return table


def circular_table(
    lists: Lists,
    target_reward: Floats,  # (N,)
    difficulty: Sequence[Cell],
    seed: int,
) -> list[dict[str, Any]]:
    """Difficulty by discriminability, each ranker in the cells that its own scores form.

    Args:
        lists: `N` lists.
        target_reward: (N,) what the ranker gives the logged item, in the list or not.
        difficulty: cells of the first cut.
        seed: of the two controls.

    Returns:
        A row a cell with, for `ranker`, `shuffled` and `random`: cases (a mean over draws), and HR@10 and NDCG@10 in
        policy order and in the order of that ranker.
    """
    policy = gains(target_ranks(lists, lists.log_probs))
    sums: dict[tuple[str, str, str], Floats] = {}
    for name, rewards, own, weight in ranker_and_controls(lists, target_reward, seed):
        ordered = gains(target_ranks(lists, rewards))
        bands = discriminability_cells(beam_discriminability(lists, rewards, own))
        for cell in difficulty:
            for band in bands:
                rows = cell.rows & band.rows
                totals = [
                    rows.sum(),
                    *(values[metric][rows].sum() for values in (policy, ordered) for metric in METRICS),
                ]
                key = (cell.name, band.name, name)
                sums[key] = sums.get(key, np.zeros(5)) + weight * np.array(totals, dtype=np.float64)
    table: dict[tuple[str, str], dict[str, Any]] = {}
    for (cell_name, band_name, name), total in sums.items():
        cases = total[0]
        means = [None if cases == 0 else float(value / cases) for value in total[1:]]
        entry = {
            "cases": float(cases),
            "policy": dict(zip(METRICS, means[:2], strict=True)),
            "own_order": dict(zip(METRICS, means[2:], strict=True)),
        }
        row = table.setdefault((cell_name, band_name), {"difficulty": cell_name, "discriminability": band_name})
        row[name] = entry
    return list(table.values())


def ranker_and_controls(lists: Lists, target_reward: Floats, seed: int) -> Iterator[tuple[str, Floats, Floats, float]]:
    """The ranker, and `DRAWS` draws each of a `shuffled` and a `random` one.

    Yields:
        Name, (N, W) scores, (N,) scores of the logged item, and the weight of the draw in a mean over draws.
    """
    yield "ranker", lists.rewards, target_reward, 1.0
    generator = np.random.default_rng(seed)
    is_target = (lists.items == lists.targets[:, None]) & lists.usable
    missing = ~is_target.any(axis=1)
    # the logged item is one candidate more where the list does not hold it
    values = np.column_stack([np.where(lists.usable, lists.rewards, 0.0), target_reward])
    real = np.column_stack([lists.usable, missing])

    def split(scores: Floats) -> tuple[Floats, Floats]:
        own = np.where(missing, scores[:, -1], np.where(is_target, scores[:, :-1], 0.0).sum(axis=1))
        return scores[:, :-1], own

    for _ in range(DRAWS):
        yield "shuffled", *split(permuted(values, real, generator)), 1 / DRAWS
        yield "random", *split(generator.standard_normal(values.shape)), 1 / DRAWS
