"""Uplift map: a ranker's gain over difficulty for the policy and discriminability by the ranker.

    uplift(cell) = mean over the cases of the cell of  m(ranker's order) - m(policy's order)

Tables 2 and 3 of AdaGRPO (Xu et al. 2026, arXiv 2606.08480) are such a map. Its cells are formed by the scores that are
then judged, so that any ranker gains where it was lucky. We depart by giving a shuffled ranker a map of its own, with
cells formed in the same way: what the ranker knows is the difference between the two.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from adagrpo.diagnosis.orders import Floats, Lists, target_ranks
from adagrpo.diagnosis.strata import METRICS, Cell, beam_discriminability, gains, ranker_and_controls, thirds
from adagrpo.evaluation.statistics import bootstrap_means

__all__ = ["BANDS", "uplift_map"]

BANDS = (0.5, 0.8, 0.95)


def uplift_map(
    lists: Lists,
    target_reward: Floats,  # (N,)
    nll: Floats,  # (N,)
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """The uplift of the ranker's order over the policy's in each cell, beside that of a shuffled ranker in its own.

    Args:
        lists: `N` lists.
        target_reward: (N,) what the ranker gives the logged item, in the list or not.
        nll: (N,) the policy's NLL of the logged item, whose thirds are the difficulty.
        resamples: of the bootstrap.
        seed: of the bootstrap and of the shuffled ranker.

    Returns:
        `difficulty` and `discriminability`, the names along both sides, and `cells`: for `ranker` the cases and an
        interval of each metric, for `shuffled` means over draws. None stands for what a cell without cases has.
    """
    rows = thirds("target NLL", nll)
    policy = gains(target_ranks(lists, lists.log_probs))
    own: dict[tuple[str, str], dict[str, Any]] = {}
    control: dict[tuple[str, str], Floats] = {}
    columns = [cell.name for cell in _bands(nll)]
    for name, rewards, of_target, weight in ranker_and_controls(lists, target_reward, seed):
        if name == "random":
            continue
        ordered = gains(target_ranks(lists, rewards))
        change = np.stack([ordered[metric] - policy[metric] for metric in METRICS])  # (2, N)
        for row in rows:
            for column in _bands(beam_discriminability(lists, rewards, of_target)):
                kept, key = row.rows & column.rows, (row.name, column.name)
                if name == "ranker":
                    own[key] = _measured(change[:, kept], resamples=resamples, seed=seed)
                else:
                    sums = weight * np.array([kept.sum(), *change[:, kept].sum(axis=1)])
                    control[key] = control.get(key, np.zeros(3)) + sums
    cells = [
        {"difficulty": key[0], "discriminability": key[1], "ranker": own[key], "shuffled": _mean(control[key])}
        for key in own
    ]
    return {"difficulty": [row.name for row in rows], "discriminability": columns, "cells": cells}


def _bands(q: Floats) -> list[Cell]:
    names = (f"q < {BANDS[0]:g}", *(f"{a:g} to {b:g}" for a, b in pairwise(BANDS)), f"q ≥ {BANDS[-1]:g}")
    edges = pairwise((-np.inf, *BANDS, np.inf))
    return [Cell(name, (q >= low) & (q < high)) for name, (low, high) in zip(names, edges, strict=True)]


def _measured(
    change: Floats,  # (2, N)
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    cases = change.shape[1]
    if cases == 0:
        return {"cases": 0} | dict.fromkeys(METRICS)
    intervals = bootstrap_means(change, resamples=resamples, seed=seed)
    return {"cases": cases} | {metric: value._asdict() for metric, value in zip(METRICS, intervals, strict=True)}


def _mean(sums: Floats) -> dict[str, Any]:
    cases = float(sums[0])
    means = [None] * len(METRICS) if cases == 0 else (sums[1:] / cases).tolist()
    return {"cases": cases} | dict(zip(METRICS, means, strict=True))
