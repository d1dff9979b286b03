"""The verdict on a reward from beams alone, by the rule of `adagrpo.diagnosis.verdict`.

Further evidence, without influence: the gain of the reward's own order, `leads_as_logged`, and with cases weighted by
inverse exposure, `leads`. Only the halvings are random; `draws` gives the effect of another seed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from adagrpo import metrics
from adagrpo.diagnosis.orders import (
    Floats,
    Ints,
    Lists,
    RepeatedMix,
    repeated_mix,
    serving_quantities,
    share_below,
    target_ranks,
)
from adagrpo.diagnosis.strata import Cell, Gains, bounded_interval, gains, thirds
from adagrpo.diagnosis.verdict import CellTest, Verdict, decide, strength_of
from adagrpo.evaluation.exposure_weights import exposure_weights
from adagrpo.evaluation.reranking import WEIGHTS, best_weight, edge_warning
from adagrpo.evaluation.statistics import Interval

ALL_CASES = "all cases"
WORTH_HAVING = 0.01  # of the policy's NDCG@10, a convention: a gain below it is none


class Judgement(NamedTuple):
    """A verdict with its inputs."""

    verdict: Verdict
    evidence: dict[str, Any]  # by question, see `_evidence`
    draws: dict[str, Any]  # see `_draws`
    cells: list[Cell]  # all cases first
    ranks: dict[str, Ints]  # (N,) of the logged item, by order: policy and ranker
    orders: dict[str, Gains]  # what each case gets, by order: policy, ranker and mix
    mixed: dict[str, Floats]  # (N,) every metric of each case under the mix
    advice: dict[str, Any]  # see `_advice`
    reached: bool  # False: no gain is shown, and the cases are too few to rule out one that is worth having

    def metrics(self, width: int) -> dict[str, dict[str, float]]:
        """Return the mean metrics over all cases, by order; lists have `width` items."""
        means = {name: metrics.measure(metrics.RankedLists(ranks, width)) for name, ranks in self.ranks.items()}
        return means | {"mix": {name: float(values.mean()) for name, values in self.mixed.items()}}

    def as_json(self) -> dict[str, Any]:
        """Return the section `verdict` of a diagnosis, without its sentences."""
        verdict = self.verdict
        return {
            "decision": verdict.decision,
            "strength": verdict.strength,
            "inverted": verdict.inverted,
            "reached": self.reached,
            "evidence": self.evidence,
            "draws": self.draws,
            "where": list(verdict.where),
            "all_cases_adjusted_p": verdict.cell_p[0],
        }


def judge(
    lists: Lists,
    history_lengths: Ints,  # (N,)
    shown: Ints,  # (N,)
    *,
    case_weights: Floats | None = None,
    seed: int,
    level: float = 0.05,
) -> Judgement:
    """Judge whether re-ranking by a reward helps, and whether its sign is right.

    Args:
        shown: exposures of each case's logged item, or its training interactions.
        case_weights: for the choice of the advised weight; None: equal.
        seed: of the halvings.
    """
    keys = {"policy": lists.log_probs, "ranker": lists.rewards}
    ranks = {name: target_ranks(lists, values) for name, values in keys.items()}
    orders: dict[str, Gains] = {name: gains(order_ranks) for name, order_ranks in ranks.items()}
    repeated = repeated_mix(lists, seed=seed)
    mixed = _measured_mix(repeated, lists.items.shape[1])
    orders["mix"] = {name: mixed[name] for name in orders["policy"]}
    less = {name: orders[name]["ndcg@10"] - orders["policy"]["ndcg@10"] for name in ("mix", "ranker")}
    cells, tests = serving_tests(lists, history_lengths, less["mix"])
    leads, as_logged = bounded_interval(less["ranker"], exposure_weights(shown)), bounded_interval(less["ranker"])
    target = lists.items == lists.targets[:, None]
    below = share_below(lists.rewards, target, lists.usable & ~target)
    in_order = bounded_interval(below[~np.isnan(below)] - 0.5)
    verdict = decide(tests, in_order, level=level)
    adds = tests[0].difference
    alone = {"orders": in_order, "leads": leads, "leads_as_logged": as_logged}
    questions = {"adds": (adds, verdict.cell_p[0])} | {name: (found, found.p_value) for name, found in alone.items()}
    evidence = _evidence(questions, level)
    worse = verdict.inverted or evidence["leads_as_logged"]["strength"] == "against"
    too_little = adds.high <= WORTH_HAVING * orders["policy"]["ndcg@10"].mean()
    reached = bool(verdict.decision == "use" or worse or too_little)
    advice = _advice(repeated, case_weights)
    return Judgement(verdict, evidence, _draws(repeated, less["mix"]), cells, ranks, orders, mixed, advice, reached)


def serving_tests(
    lists: Lists,
    history_lengths: Ints,  # (N,)
    difference: Floats,  # (N,)
) -> tuple[list[Cell], list[CellTest]]:
    """Return the cells known at serving time, all cases first, and the tests of the mix's gain in NDCG@10."""
    cells = [Cell(ALL_CASES, np.ones(len(lists.targets), dtype=np.bool_))]
    for name, values in serving_quantities(lists, history_lengths).items():
        cells += thirds(name, values)
    return cells, [CellTest(cell.name, bounded_interval(difference[cell.rows])) for cell in cells]


def _measured_mix(repeated: RepeatedMix, width: int) -> dict[str, Floats]:
    by_weight = [metrics.measure_users(metrics.RankedLists(ranks, width)) for ranks in repeated.ranks]
    return {name: repeated.mean(np.stack([values[name] for values in by_weight])) for name in by_weight[0]}


def _advice(repeated: RepeatedMix, case_weights: Floats | None) -> dict[str, Any]:
    weights = 1.0 if case_weights is None else case_weights
    weight = best_weight({w: weights * metrics.ndcg(r, 10) for w, r in zip(WEIGHTS, repeated.ranks, strict=True)})
    return {"weight": weight, "spread": repeated.spread, "warning": edge_warning(weight)}


def _draws(repeated: RepeatedMix, difference: Floats) -> dict[str, Any]:
    """Standard error of the mix's gain over the halvings, and its ratio to that over users."""
    halvings = len(repeated.ndcg)
    error = float(repeated.ndcg.std(ddof=1)) / np.sqrt(halvings)
    of_users = float(difference.std(ddof=1)) / np.sqrt(len(difference)) if len(difference) > 1 else 0.0
    share = float(error / of_users) if of_users > 0 else 0.0
    return {"halvings": halvings, "error_of_the_draws": float(error), "share_of_the_error": share}


def _evidence(questions: dict[str, tuple[Interval, float]], level: float) -> dict[str, Any]:
    return {
        name: interval._asdict() | {"adjusted_p": p, "strength": strength_of(interval.mean, p, level=level)}
        for name, (interval, p) in questions.items()
    }
