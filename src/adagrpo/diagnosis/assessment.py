"""The diagnosis of a reward on validation cases, JSON-able.

Beside `orders`, `leaks` and `verdict`, curves by the weight of the reward, and accuracy by exposure:

    curve(w)     mean over cases of  m(order by log π + w RM / σ) - m(order by log π)        w = ∞: by the reward alone
    order(bin)   mean over cases of the share of the list's other items of the same bin that score below the logged one

A bin holds items shown about equally often, so that popularity alone scores one half. Cases whose list lacks the logged
item are left out. In simulated worlds, `truth` is the share of pairs of other items in the order of true utility.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adagrpo import metrics
from adagrpo.diagnosis.orders import (
    METRICS,
    Cell,
    Lists,
    Mix,
    cross_fitted_mix,
    gains,
    measure,
    mixed_keys,
    permuted,
    popularity_cells,
    share_below,
    target_ranks,
    thirds,
)
from adagrpo.diagnosis.verdict import LEVEL, judge, sentences
from adagrpo.rewards.reranking import WEIGHTS, case_weights
from adagrpo.statistics import bootstrap_mean, bootstrap_means
from adagrpo.types import Floats, Ints

RESAMPLES = 2000
QUANTILES = (0.25, 0.5, 0.75)
DRAWS = 5  # of a shuffled reward

Masks = NDArray[np.bool_]
Utility = Callable[[Ints], Floats]  # (N, G) items, -1 where none, to (N, G) true utility


@dataclass(frozen=True)
class Observations:
    """Inputs of a diagnosis: `N` validation cases, in one order."""

    lists: Lists
    history_lengths: Ints  # (N,)
    training_counts: Ints  # (V,) training interactions of each item
    nll: Floats  # (N,) the policy's NLL of each logged item, nats a code
    exposures: Ints | None = None  # (V,) how often each item was shown, where that is known
    utility: Utility | None = None  # where the world is simulated

    @property
    def counts(self) -> Ints:
        """(V,) `exposures`, or training interactions if those are unknown."""
        return self.training_counts if self.exposures is None else self.exposures

    @property
    def counted(self) -> str:
        """What `counts` are, in words."""
        return "training interactions" if self.exposures is None else "times shown"


def diagnose(
    observed: Observations,
    leak: dict[str, Any] | None = None,  # from `leak_signs`; any sign makes the verdict `do_not_use`. None: not tested
    *,
    exposure_power: float = 0.5,  # of `case_weights`, in the advised weight
    seed: int,
    resamples: int = RESAMPLES,  # of the bootstrap, which the verdict does not use
) -> dict[str, Any]:
    """Diagnose whether re-ranking by a reward helps, and whether its sign is right.

    JSON-able: `verdict`, `settings` and the tables. Rates are fractions, log-probabilities nats, intervals 95 %.
    """
    lists, options = observed.lists, {"resamples": resamples, "seed": seed}
    width, shown = lists.items.shape[1], observed.counts[lists.targets]
    weights = None if observed.exposures is None else case_weights(shown, exposure_power)
    judged = judge(lists, observed.history_lengths, shown, case_weights=weights, seed=seed)
    verdict, in_beam = judged.verdict, judged.ranks["policy"] > 0
    mix = cross_fitted_mix(lists, np.random.default_rng(seed).permutation(len(lists.targets)) % 2 == 0)
    means = {name: metrics.measure(metrics.RankedLists(ranks, width)) for name, ranks in judged.ranks.items()}
    serving = measure(judged.cells[1:], judged.orders, in_beam, **options)

    generator = np.random.default_rng(seed)
    shuffled = [gains(target_ranks(lists, permuted(lists.rewards, lists.usable, generator))) for _ in range(DRAWS)]
    chance = {metric: np.mean([values[metric] for values in shuffled], axis=0) for metric in METRICS}
    strata: dict[str, list[Cell]] = {
        "all": judged.cells[:1],
        "popularity": popularity_cells(lists.targets, observed.training_counts),
        "difficulty": thirds("target NLL", observed.nll),
    }
    if observed.exposures is not None:
        strata["exposure"] = thirds("times shown", observed.exposures[lists.targets].astype(np.float64), digits=0)
    orders = judged.orders | {"shuffled ranker": chance}
    measured: dict[str, Any] = {name: measure(cells, orders, in_beam, **options) for name, cells in strata.items()}

    result: dict[str, Any] = {
        "verdict": {
            "decision": verdict.decision,
            "strength": verdict.strength,
            "inverted": verdict.inverted,
            "reached": judged.reached,
            "evidence": judged.evidence,
            "draws": judged.draws,
            "where": list(verdict.where),
            "all_cases_adjusted_p": verdict.cell_p[0],
            "counted": observed.counted,
        },
        "leak": leak,
        "settings": {
            "cases": len(lists.targets),
            "beam_width": width,
            "level": LEVEL,
            "resamples": resamples,
            "mix_weights": list(mix.weights),
            "reward_spread": mix.within_list_std,
        },
        "reranking": judged.advice,
        "orders": means | {"mix": {name: float(values.mean()) for name, values in judged.mixed.items()}},
        "serving": [row | {"adjusted_p": p} for row, p in zip(serving, verdict.cell_p[1:], strict=True)],
        **measured,
        "all": measured["all"][0],
        "weights": weight_curve(lists, mix, **options),
        "by_exposure": order_by_exposure(lists, observed.counts, observed.counted, utility=observed.utility, **options),
    }
    if leak is not None and leak["signs"]:
        result["verdict"] |= {"decision": "do_not_use", "strength": "strong", "reached": True}
    result["verdict"]["sentences"] = sentences(result)
    return result


def weight_curve(lists: Lists, mix: Mix, *, resamples: int, seed: int) -> dict[str, Any]:
    """Return each metric's change by weight (None: the reward alone), with intervals.

    Of the `ranker`, `shuffled` rewards, and the cross-fitted `mix` with its `chosen` weights.
    """
    policy = gains(target_ranks(lists, lists.log_probs))

    def changes(rewards: Floats) -> Floats:  # (weights, metrics, N)
        scored = lists._replace(rewards=rewards)
        keys = [*(mixed_keys(scored, weight, mix.within_list_std) for weight in WEIGHTS), rewards]
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
    counts: Ints,  # (V,) how often each item was shown, or a substitute, named `counted`
    counted: str,
    *,
    utility: Utility | None = None,  # (N, W) items to their true utility, in simulated worlds
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Measure how well ranker and policy order items shown about equally often.

    `counted`, and `bins`: name, items, cases, intervals of `ranker` and `policy` (None without cases), and `truth`.
    """
    edges = np.unique(np.floor(np.quantile(counts[lists.targets], QUANTILES)).astype(np.int64))
    bin_of = np.searchsorted(edges, counts)  # (V,)
    is_target = (lists.items == lists.targets[:, None]) & lists.usable
    others = lists.usable & ~is_target
    of_item = np.where(lists.usable, bin_of[np.maximum(lists.items, 0)], -1)  # (N, W)
    true = None if utility is None else utility(lists.items)
    scores = {"ranker": lists.rewards, "policy": lists.log_probs}
    bins = []
    for index, name in enumerate(_names(edges)):
        inside = others & (of_item == index)
        mine = is_target.any(axis=1) & (bin_of[lists.targets] == index) & inside.any(axis=1)
        row: dict[str, Any] = {"bin": name, "items": int((bin_of == index).sum()), "cases": int(mine.sum())}
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
    starts = [-1, *edges.tolist()]
    middle = [f"{low + 1:,} to {high:,}" if high > low + 1 else f"{high:,}" for low, high in pairwise(starts)]
    return [*middle, f"{starts[-1] + 1:,} and more"]


def _pairs_in_order(scores: Floats, utility: Floats, kept: Masks) -> Floats:
    """(N,) share of kept pairs of different utility in order; NaN without pairs."""
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
