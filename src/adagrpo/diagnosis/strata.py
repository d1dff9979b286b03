"""Splits cases into cells and measures the orders of the beam in each.

    serving      by what is known at serving time; a gain there can be realised
    target       by the logged item (popularity, exposure, difficulty): biased against the policy where its own failure
                 defines the cell

Unlike Tables 2 and 3 of AdaGRPO (Xu et al. 2026, arXiv 2606.08480), no cell is defined by the scores under test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adagrpo import metrics
from adagrpo.diagnosis.orders import Floats, Ints
from adagrpo.evaluation.statistics import Interval, mean_interval, paired_difference

METRICS = ("hr@10", "ndcg@10")
MIN_MOVED = 20  # non-zero differences; with fewer the interval is too narrow

Gains = Mapping[str, Floats]  # metric -> (N,) one number a case


class Cell(NamedTuple):
    """A subset of the cases."""

    name: str
    rows: NDArray[np.bool_]  # (N,)


def gains(ranks: Ints) -> dict[str, Floats]:
    """Return HR@10 and NDCG@10 of each case from the (N,) ranks of the logged items."""
    return {"hr@10": metrics.hit_rate(ranks, 10), "ndcg@10": metrics.ndcg(ranks, 10)}


def thirds(name: str, values: Floats, *, digits: int = 2) -> list[Cell]:
    """Return up to three cells of about equal size by a quantity; NaN is in none, and ties stay together."""
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
    """Return cells by head, middle and tail items, with a third of the training interactions each."""
    tail, below_head = metrics.tail_items(counts, 1 / 3), metrics.tail_items(counts, 2 / 3)
    masks = {"head": ~below_head, "middle": below_head & ~tail, "tail": tail}
    cells = [Cell(f"{name} ({int(mask.sum()):,} items)", mask[targets]) for name, mask in masks.items()]
    return [cell for cell in cells if cell.rows.any()]


def bounded_interval(differences: Floats, weights: Floats | None = None) -> Interval:
    """Return the normal interval of a mean difference; p is 1 if fewer than `MIN_MOVED` cases differ from 0."""
    if not len(differences):
        return Interval(0.0, 0.0, 0.0, 1.0)
    interval = mean_interval(differences, weights)
    return interval if np.count_nonzero(differences) >= MIN_MOVED else interval._replace(p_value=1.0)


def measure(
    cells: Sequence[Cell],
    orders: Mapping[str, Gains],
    in_beam: NDArray[np.bool_],  # (N,)
    *,
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Return a row per cell: cases, share with the logged item in the beam, metrics and differences from `policy`."""
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
