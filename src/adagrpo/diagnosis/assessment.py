"""The whole diagnosis of a reward on validation cases, as a JSON-able result.

orders     the beam ordered by policy, ranker and mix                       `adagrpo.diagnosis.orders`
strata     the same by cells of the cases                                   `adagrpo.diagnosis.strata`
curves     metrics by weight, accuracy by exposure                          `adagrpo.diagnosis.curves`
leak       signs that the reward has seen the held-out items                `adagrpo.diagnosis.leaks`
verdict    `use` or `do_not_use`, and whether the sign is wrong             `adagrpo.diagnosis.judgement`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adagrpo.diagnosis.curves import DRAWS, order_by_exposure, weight_curve
from adagrpo.diagnosis.judgement import ALL_CASES, judge
from adagrpo.diagnosis.orders import Floats, Ints, Lists, cross_fitted_mix, permuted, target_ranks
from adagrpo.diagnosis.sentences import sentences
from adagrpo.diagnosis.strata import Cell, Gains, gains, measure, popularity_cells, thirds
from adagrpo.evaluation.exposure_weights import case_weights

RESAMPLES = 2000
LEVEL = 0.05

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
    leak: dict[str, Any] | None = None,
    *,
    exposure_power: float = 0.5,
    seed: int,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Diagnose whether re-ranking by a reward helps, and whether its sign is right.

    Args:
        leak: from `leak_signs`; any sign makes the verdict `do_not_use`. None: not tested.
        exposure_power: of `case_weights`, in the advised weight.
        resamples: of the bootstrap, which the verdict does not use.

    Returns:
        JSON-able: `verdict`, `settings` and the tables. Rates are fractions, log-probabilities nats, intervals 95 %.
    """
    lists, options = observed.lists, {"resamples": resamples, "seed": seed}
    shown = observed.counts[lists.targets]
    weights = None if observed.exposures is None else case_weights(shown, exposure_power)
    judged = judge(lists, observed.history_lengths, shown, case_weights=weights, seed=seed, level=LEVEL)
    in_beam = judged.ranks["policy"] > 0
    serving = measure(judged.cells[1:], judged.orders, in_beam, **options)
    mix = cross_fitted_mix(lists, np.random.default_rng(seed).permutation(len(lists.targets)) % 2 == 0)
    result: dict[str, Any] = {
        "verdict": judged.as_json() | {"counted": observed.counted},
        "leak": leak,
        "settings": {
            "cases": len(lists.targets),
            "beam_width": lists.items.shape[1],
            "level": LEVEL,
            "resamples": resamples,
            "mix_weights": list(mix.weights),
            "reward_spread": mix.spread,
        },
        "reranking": judged.advice,
        "orders": judged.metrics(lists.items.shape[1]),
        "serving": [row | {"adjusted_p": p} for row, p in zip(serving, judged.verdict.cell_p[1:], strict=True)],
        **_strata(observed, judged.orders | {"shuffled ranker": _chance(lists, seed)}, in_beam, **options),
        "weights": weight_curve(lists, mix, **options),
        "by_exposure": order_by_exposure(lists, observed.counts, observed.counted, utility=observed.utility, **options),
    }
    if leak is not None and leak["signs"]:
        result["verdict"] |= {"decision": "do_not_use", "strength": "strong", "reached": True}
    result["verdict"]["sentences"] = sentences(result)
    return result


def _chance(lists: Lists, seed: int) -> dict[str, Floats]:
    generator = np.random.default_rng(seed)
    drawn = [gains(target_ranks(lists, permuted(lists.rewards, lists.usable, generator))) for _ in range(DRAWS)]
    return {metric: np.mean([values[metric] for values in drawn], axis=0) for metric in drawn[0]}


def _strata(
    observed: Observations,
    orders: Mapping[str, Gains],
    in_beam: NDArray[np.bool_],  # (N,)
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    lists = observed.lists
    tables = {
        "all": [Cell(ALL_CASES, np.ones(len(lists.targets), dtype=np.bool_))],
        "popularity": popularity_cells(lists.targets, observed.training_counts),
        "difficulty": thirds("target NLL", observed.nll),
    }
    if observed.exposures is not None:
        tables["exposure"] = thirds("times shown", observed.exposures[lists.targets].astype(np.float64), digits=0)
    measured: dict[str, Any] = {
        name: measure(cells, orders, in_beam, resamples=resamples, seed=seed) for name, cells in tables.items()
    }
    return measured | {"all": measured["all"][0]}
