"""From beams to `use` or `do_not_use`, and whether the reward's sign is wrong.

    adds      the mix beats the policy's order in NDCG@10: over all cases, at half the level, or in a cell known at
              serving time, Holm (1979) over the cells at the other half
    orders    the share of a beam's other items that the reward puts below the logged one, less one half

    use           adds
    do_not_use    adds nowhere: no gain is shown
    inverted      orders is below 0 with p ≤ `STRONG`: the reward ranks logged items worse than chance

An uninformative reward gets `use` with probability at most `level`. Without influence are the gain of the reward's own
order, `leads_as_logged`, or with cases weighted by inverse exposure, `leads`, and the verdicts of other `draws`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from adagrpo import metrics
from adagrpo.diagnosis.orders import (
    Cell,
    Gains,
    Lists,
    bounded_interval,
    gains,
    repeated_mix,
    serving_quantities,
    share_below,
    target_ranks,
    thirds,
)
from adagrpo.rewards.reranking import WEIGHTS, best_weight, edge_warning, exposure_weights
from adagrpo.statistics import Interval, holm
from adagrpo.types import Floats, Ints

LEVEL, STRONG = 0.05, 0.001
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


def strength_of(mean: float, p_value: float) -> Strength:
    """Return a word for the evidence of a mean above 0, by its two-sided, adjusted p-value."""
    if p_value > LEVEL or mean == 0:
        return "none"
    if mean < 0:
        return "against"
    return "strong" if p_value <= STRONG else "some"


def decide(cells: Sequence[CellTest], orders: Interval) -> Verdict:
    """Apply the module's rule to cells, all cases first; none may be by the logged item."""
    raw = [test.difference.p_value for test in cells]
    cell_p = tuple(min(1.0, 2 * p) for p in (*raw[:1], *holm(raw[1:])))
    strengths = [strength_of(test.difference.mean, p) for test, p in zip(cells, cell_p, strict=True)]
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
    verdict = decide(tests, in_order)

    adds = tests[0].difference
    leads, as_logged = bounded_interval(lead, exposure_weights(shown)), bounded_interval(lead)
    found = {"adds": adds, "orders": in_order, "leads": leads, "leads_as_logged": as_logged}
    evidence = {}
    for name, interval in found.items():
        p = verdict.cell_p[0] if name == "adds" else interval.p_value
        strength = strength_of(interval.mean, p)
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


INVERTED = "its own order is significantly worse than chance within the policy's lists: is its sign flipped?"
OPENINGS = {
    "use": "Re-ranking the policy's list by this reward helps.",
    "do_not_use": "Do not re-rank the policy's list by this reward: no gain is shown.",
}
STRENGTHS = {"strong": "strong", "some": "significant, but not strong"}
TRAINING = (
    "Whether training on it helps is not measured here: `adagrpo decide --train` compares trained policies with the"
    " other lists."
)


def sentences(result: Mapping[str, Any]) -> list[str]:
    """Return the recommendation and its reasons, from the result of `adagrpo.diagnosis.diagnose`."""
    verdict, evidence = result["verdict"], result["verdict"]["evidence"]
    if (leak := leak_reason(result["leak"])) is not None:
        leaking = result["leak"].get("leaking") or ["the reward"]
        it, signs = "it has", "The signs"
        if leaking[0] != "the reward":  # members of a sum
            has = "has" if len(leaking) == 1 else "have"
            it, signs = f"{' and '.join(leaking)} {has}", f"The signs of {leaking[0]}"
        opening = [
            f"Do not use this reward before it is checked: {it} probably seen the held-out items, and nothing that is"
            " measured of it here will hold.",
            f"{signs}: {leak}. Check that all that it was fitted on or counts ends where training ends"
            " (prepare/training_logs.parquet); a reward that truly knows more than the logs can look like this.",
        ]
    else:
        opening = [OPENINGS[verdict["decision"]], _why(result)]
        weight, std, warning = (result["reranking"][name] for name in ("weight", "spread", "warning"))
        if verdict["decision"] == "use" and weight == 0:
            opening.append(
                "Over all cases no weight of the reward is better than none; re-rank only in the segments named below."
            )
        elif verdict["decision"] == "use":
            unit = f"in units of the reward's spread within a list, {std:.3g}"
            edge = "" if warning is None else f"; {warning}"
            opening.append(f"The weight that is best on validation is {weight:g}, {unit}{edge}.")
    mix, draws, where = result["all"]["minus_policy"]["mix"], verdict["draws"], verdict["where"]
    mean, low, high = (f"{100 * (0.5 + evidence['orders'][name]):.1f}" for name in ("mean", "low", "high"))
    gains = f"The gain is significant in: {'; '.join(where)}."
    if not where:
        gains = "The gain is significant in no segment that is known when serving."
    elif where[0] == result["all"]["cell"]:
        cells = f"{len(where) - 1} of {len(result['serving'])} segments known when serving"
        gains = f"The gain is significant over all cases, and in {cells}."
    return [
        *opening,
        f"Ordered by policy and ranker together, NDCG@10 changes by {_change(evidence['adds'], 4)} and HR@10 by"
        f" {_change(mix['hr@10'], 2, 100)} points, on average over {draws['halvings']:,} random splits of the users"
        " into halves, each half with the weight that is best on the other.",
        f"Where the policy's list holds the logged item, the reward puts it above {mean} % ({low} to {high}) of the"
        " others; 50 % is chance.",
        f"Ordered by the ranker alone, NDCG@10 changes by {_change(evidence['leads_as_logged'], 4)} over the logged"
        f" cases, and by {_change(evidence['leads'], 4)} with each case weighted by one over the {verdict['counted']}"
        " of its item.",
        gains,
        "With another seed the gain of policy and ranker together would change by about"
        f" {_rate(draws['share_of_the_error'])} of its standard error, and that of the ranker alone not at all.",
        TRAINING,
    ]


def leak_reason(leak: Mapping[str, Any] | None) -> str | None:
    """Return in words the signs of `leak_signs`; None without one."""
    if leak is None or not leak["signs"]:
        return None
    first, best = leak["hr@1"], max(leak["references"], key=lambda name: leak["references"][name])
    why = {
        "remembers": f"it puts {_rate(first['held-out items'])} of the held-out items first, and of the users' last"
        f" training items only {_rate(first['last training items'])}",
        "ahead": f"it puts {_rate(first['held-out items'])} of the held-out items first, where the best ranker of"
        f" training alone, {best}, puts {_rate(leak['references'][best])}",
        "certain": f"of the held-out items of which it is surest it puts {_rate(first['held-out items, surest'])}"
        " first, far more than any ranker of training alone",
    }
    return f"among the same drawn items {'; '.join(why[sign] for sign in leak['signs'])}"


def _why(result: Mapping[str, Any]) -> str:
    verdict, evidence = result["verdict"], result["verdict"]["evidence"]
    adds, alone = evidence["adds"], evidence["leads_as_logged"]
    if verdict["decision"] == "use" and adds["strength"] in ("some", "strong"):
        why = f"The evidence for it is {STRENGTHS[verdict['strength']]}."
    elif verdict["decision"] == "use":
        why = "The gain is significant in some segments, and not over all cases."
    elif not verdict["reached"]:
        own = result["orders"]["policy"]["ndcg@10"]
        why = (
            f"These cases are too few for a decision: by re-ranking, NDCG@10 changes by {_change(adds, 4)}, which holds"
            f" a gain of 1 % of the policy's {own:.4f}; you need more validation cases."
        )
    else:
        why = f"Re-ranking by it gains at most {max(adds['high'], 0):.4f} NDCG@10"
        if alone["strength"] == "against" and not verdict["inverted"]:
            why += f"; its own order is significantly worse than the policy's, by {_change(alone, 4)}"
        why += "."
    return why + (f" {INVERTED[0].upper()}{INVERTED[1:]}" if verdict["inverted"] else "")


def _rate(share: float) -> str:
    return f"{100 * share:.1f} %"


def _change(interval: Mapping[str, float], digits: int, factor: float = 1) -> str:
    # what rounds to nothing has no minus
    mean, low, high = (round(factor * interval[name], digits) + 0.0 for name in ("mean", "low", "high"))
    return f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
