"""From beams to `use` or `do_not_use`, and whether the reward's sign is wrong.

    adds      the mix beats the policy's order in NDCG@10: over all cases, at half the level, or in a cell known at
              serving time, Holm (1979) over the cells at the other half
    orders    the share of a beam's other items that the reward puts below the logged one, less one half

    use           adds
    do_not_use    adds nowhere: no gain is shown
    inverted      orders is below 0 with p ≤ `STRONG`: the reward ranks logged items worse than chance

An uninformative reward gets `use` with probability at most `level`. Nothing measured before training predicted in
simulated shops whether training helps (`research.decisions.shops`); see `adagrpo decide --train`.

Further evidence, without influence: the gain of the reward's own order, `leads_as_logged`, and with cases weighted by
inverse exposure, `leads`. Only the halvings are random; `draws` gives the effect of another seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from adagrpo import metrics
from adagrpo.diagnosis.orders import (
    Cell,
    Floats,
    Gains,
    Ints,
    Lists,
    bounded_interval,
    gains,
    repeated_mix,
    serving_quantities,
    share_below,
    target_ranks,
    thirds,
)
from adagrpo.evaluation.reranking import WEIGHTS, best_weight, edge_warning, exposure_weights
from adagrpo.evaluation.statistics import Interval, holm

STRONG = 0.001
ALL_CASES = "all cases"
WORTH_HAVING = 0.01  # of the policy's NDCG@10, a convention: a gain below it is none

Decision = Literal["use", "do_not_use"]
Strength = Literal["strong", "some", "none", "against"]


class CellTest(NamedTuple):
    """The mix minus the policy's order in a cell."""

    name: str
    difference: Interval


class Verdict(NamedTuple):
    """The recommendation."""

    decision: Decision
    strength: Strength  # of the evidence for it; none: no gain is shown and no loss either
    inverted: bool
    where: tuple[str, ...]  # the cells in which re-ranking gains
    cell_p: tuple[float, ...]  # adjusted, to be compared with the level: of all cases, then of each cell


class Judgement(NamedTuple):
    """A verdict with its inputs."""

    verdict: Verdict
    evidence: dict[str, Any]  # by question: an interval, its adjusted p-value and a word
    draws: dict[str, Any]  # standard error of the mix's gain over the halvings, and its ratio to that over users
    cells: list[Cell]  # all cases first
    ranks: dict[str, Ints]  # (N,) of the logged item, by order: policy and ranker
    orders: dict[str, Gains]  # what each case gets, by order: policy, ranker and mix
    mixed: dict[str, Floats]  # (N,) every metric of each case under the mix
    advice: dict[str, Any]  # the best weight over all cases, its unit, and a warning where it is at the edge
    reached: bool  # False: no gain is shown, and the cases are too few to rule out one that is worth having


def strength_of(mean: float, p_value: float, *, level: float = 0.05) -> Strength:
    """Return a word for the evidence that a quantity is above 0, by its two-sided, adjusted p-value."""
    if p_value > level or mean == 0:
        return "none"
    if mean < 0:
        return "against"
    return "strong" if p_value <= STRONG else "some"


def decide(cells: Sequence[CellTest], orders: Interval, *, level: float = 0.05) -> Verdict:
    """Apply the rule of the module's docstring at a level of the family of cells, all cases first.

    No cell may be defined by the logged item.
    """
    raw = [test.difference.p_value for test in cells]
    cell_p = tuple(min(1.0, 2 * p) for p in (*raw[:1], *holm(raw[1:])))
    strengths = [strength_of(test.difference.mean, p, level=level) for test, p in zip(cells, cell_p, strict=True)]
    where = tuple(test.name for test, word in zip(cells, strengths, strict=True) if word in ("some", "strong"))
    inverted = orders.mean < 0 and orders.p_value <= STRONG
    if where:
        over_all = strengths[0] in ("some", "strong")
        best = strengths[0] if over_all else "strong" if "strong" in strengths else "some"
        return Verdict("use", best, inverted, where, cell_p)
    # with no gain anywhere, the test over all cases decides between a loss and no evidence
    return Verdict("do_not_use", "strong" if strengths[0] == "against" else "none", inverted, where, cell_p)


def judge(
    lists: Lists,
    history_lengths: Ints,  # (N,)
    shown: Ints,  # (N,), exposures of each case's logged item, or its training interactions
    *,
    case_weights: Floats | None = None,  # for the choice of the advised weight; None: equal
    seed: int,  # of the halvings
    level: float = 0.05,
) -> Judgement:
    """Judge whether re-ranking by a reward helps, and whether its sign is right."""
    ranks = {"policy": target_ranks(lists, lists.log_probs), "ranker": target_ranks(lists, lists.rewards)}
    orders: dict[str, Gains] = {name: gains(order_ranks) for name, order_ranks in ranks.items()}
    repeated = repeated_mix(lists, seed=seed)
    measured = [metrics.measure_users(metrics.RankedLists(one, lists.items.shape[1])) for one in repeated.ranks]
    mixed = {name: repeated.mean(np.stack([values[name] for values in measured])) for name in measured[0]}
    orders["mix"] = {name: mixed[name] for name in orders["policy"]}
    gain, lead = (orders[name]["ndcg@10"] - orders["policy"]["ndcg@10"] for name in ("mix", "ranker"))

    cells = [Cell(ALL_CASES, np.ones(len(lists.targets), dtype=np.bool_))]
    for name, values in serving_quantities(lists, history_lengths).items():
        cells += thirds(name, values)
    tests = [CellTest(cell.name, bounded_interval(gain[cell.rows])) for cell in cells]
    target = lists.items == lists.targets[:, None]
    below = share_below(lists.rewards, target, lists.usable & ~target)
    in_order = bounded_interval(below[~np.isnan(below)] - 0.5)
    verdict = decide(tests, in_order, level=level)

    adds = tests[0].difference
    leads, as_logged = bounded_interval(lead, exposure_weights(shown)), bounded_interval(lead)
    found = {"adds": adds, "orders": in_order, "leads": leads, "leads_as_logged": as_logged}
    evidence = {}
    for name, interval in found.items():
        p = verdict.cell_p[0] if name == "adds" else interval.p_value
        strength = strength_of(interval.mean, p, level=level)
        evidence[name] = interval._asdict() | {"adjusted_p": p, "strength": strength}
    too_little = adds.high <= WORTH_HAVING * orders["policy"]["ndcg@10"].mean()
    worse = verdict.inverted or evidence["leads_as_logged"]["strength"] == "against"
    reached = bool(verdict.decision == "use" or worse or too_little)

    halvings = len(repeated.ndcg)
    error = float(repeated.ndcg.std(ddof=1)) / np.sqrt(halvings)
    of_users = float(gain.std(ddof=1)) / np.sqrt(len(gain)) if len(gain) > 1 else 0.0
    share = float(error / of_users) if of_users > 0 else 0.0
    draws = {"halvings": halvings, "error_of_the_draws": float(error), "share_of_the_error": share}
    weights = 1.0 if case_weights is None else case_weights
    weight = best_weight({w: weights * metrics.ndcg(r, 10) for w, r in zip(WEIGHTS, repeated.ranks, strict=True)})
    advice = {"weight": weight, "spread": repeated.within_list_std, "warning": edge_warning(weight)}
    return Judgement(verdict, evidence, draws, cells, ranks, orders, mixed, advice, reached)
