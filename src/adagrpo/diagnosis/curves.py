"""Curves of re-ranking by weight, and of the reward's accuracy by exposure.

    curve(w)     mean over cases of  m(order by log π + w RM / σ) - m(order by log π)        w = ∞: by the reward alone
    order(bin)   mean over cases of the share of the list's other items of the same bin that score below the logged one

A bin holds items shown about equally often, so that popularity alone scores one half. Cases whose list lacks the logged
item are left out. In simulated worlds, `truth` is the share of pairs of other items in the order of true utility.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adagrpo.diagnosis.orders import Floats, Ints, Lists, Mix, mixed_keys, permuted, share_below, target_ranks
from adagrpo.diagnosis.strata import METRICS, gains
from adagrpo.evaluation.reranking import WEIGHTS
from adagrpo.evaluation.statistics import bootstrap_mean, bootstrap_means

Masks = NDArray[np.bool_]
QUANTILES = (0.25, 0.5, 0.75)
DRAWS = 5  # of a shuffled reward


def weight_curve(lists: Lists, mix: Mix, *, resamples: int, seed: int) -> dict[str, Any]:
    """Compute the change of each metric at each weight, for the ranker and a shuffled one.

    Returns:
        `weights` (None: the reward alone), `chosen`, and intervals of `ranker`, `shuffled` and the cross-fitted `mix`.
    """
    policy = gains(target_ranks(lists, lists.log_probs))

    def changes(rewards: Floats) -> Floats:  # (weights, metrics, N)
        scored = lists._replace(rewards=rewards)
        keys = [*(mixed_keys(scored, weight, mix.spread) for weight in WEIGHTS), rewards]
        ordered = [gains(target_ranks(lists, values)) for values in keys]
        return np.array([[one[metric] - policy[metric] for metric in METRICS] for one in ordered])

    def intervals(values: Floats) -> list[dict[str, Any]]:
        drawn = bootstrap_means(values.reshape(-1, values.shape[-1]), resamples=resamples, seed=seed)
        by_weight = [drawn[first : first + len(METRICS)] for first in range(0, len(drawn), len(METRICS))]
        return [dict(zip(METRICS, [one._asdict() for one in row], strict=True)) for row in by_weight]

    generator = np.random.default_rng(seed)
    shuffled = np.mean([changes(permuted(lists.rewards, lists.usable, generator)) for _ in range(DRAWS)], axis=0)
    mixed = gains(target_ranks(lists, mix.keys))
    own = np.array([[mixed[metric] - policy[metric] for metric in METRICS]])
    return {
        "weights": [*WEIGHTS, None],
        "chosen": list(mix.weights),
        "ranker": intervals(changes(lists.rewards)),
        "shuffled": intervals(shuffled),
        "mix": intervals(own)[0],
    }


def order_by_exposure(
    lists: Lists,
    counts: Ints,  # (V,)
    counted: str,
    *,
    utility: Callable[[Ints], Floats] | None = None,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Measure how well ranker and policy order items shown about equally often.

    Args:
        counts: (V,) how often each item was shown, or a substitute, named `counted`.
        utility: (N, W) items to their true utility, in simulated worlds.

    Returns:
        `counted`, and `bins`: name, items, cases, intervals of `ranker` and `policy` (None without cases), and `truth`.
    """
    edges = np.unique(np.floor(np.quantile(counts[lists.targets], QUANTILES)).astype(np.int64))
    place = np.searchsorted(edges, counts)  # (V,) the bin of each item
    is_target = (lists.items == lists.targets[:, None]) & lists.usable
    others = lists.usable & ~is_target
    of_item = np.where(lists.usable, place[np.maximum(lists.items, 0)], -1)  # (N, W)
    true = None if utility is None else utility(lists.items)
    scores = {"ranker": lists.rewards, "policy": lists.log_probs}
    bins = []
    for index, name in enumerate(_names(edges)):
        inside = others & (of_item == index)
        mine = is_target.any(axis=1) & (place[lists.targets] == index) & inside.any(axis=1)
        row: dict[str, Any] = {"bin": name, "items": int((place == index).sum()), "cases": int(mine.sum())}
        row |= {
            who: _interval(share_below(values[mine], is_target[mine], inside[mine]), resamples, seed)
            for who, values in scores.items()
        }
        if true is not None:
            right = {who: _pairs_in_order(values, true, inside) for who, values in scores.items()}
            row["truth"] = {"cases": int((~np.isnan(right["ranker"])).sum())}
            row["truth"] |= {who: _interval(share[~np.isnan(share)], resamples, seed) for who, share in right.items()}
        bins.append(row)
    return {"counted": counted, "bins": bins}


def _names(edges: Ints) -> list[str]:
    """Names of the bins, from their upper edges.

    >>> _names(np.array([0, 12, 13]))
    ['0', '1 to 12', '13', '14 and more']
    """
    starts = [-1, *edges.tolist()]
    middle = [f"{low + 1:,} to {high:,}" if high > low + 1 else f"{high:,}" for low, high in pairwise(starts)]
    return [*middle, f"{starts[-1] + 1:,} and more"]


def _pairs_in_order(scores: Floats, utility: Floats, kept: Masks) -> Floats:
    """(N,) share of kept pairs of different utility in the scores' order; NaN without pairs."""
    right, pairs = np.zeros(len(scores)), np.zeros(len(scores))
    for column in range(scores.shape[1]):  # a loop over the list keeps the memory at (N, W)
        at = slice(column, column + 1)
        counted = kept[:, at] & kept & (utility[:, at] > utility)
        step = np.where(counted, scores[:, at] - np.where(kept, scores, 0.0), 0.0)
        right += ((np.sign(step) + 1) / 2 * counted).sum(axis=1)
        pairs += counted.sum(axis=1)
    return np.where(pairs > 0, right / np.maximum(pairs, 1), np.nan)


def _interval(values: Floats, resamples: int, seed: int) -> dict[str, float] | None:
    if not len(values):
        return None
    estimate = bootstrap_mean(values, resamples=resamples, seed=seed)
    return {"mean": estimate.mean, "low": estimate.low, "high": estimate.high}
