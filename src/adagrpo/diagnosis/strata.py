"""Beams re-ranked by the reward, over all cases and by strata of difficulty and of the gate's tests.

    gain of a stratum    mean over its cases of m(place by the reward) - m(place by the policy),   m: HR@10 or NDCG@10
    hard                 above_π(y) ≥ τ
    known                above_RM(y) < τ
    suppressed           above_RM(n) ≥ ρ for all negatives n

`above` is a share of the group's rollouts (`adagrpo.objective.share_above`), a place counts a tie as one half. Source:
AdaGRPO (Xu et al. 2026, arXiv 2606.08480), tables 1 (all cases), 2 (difficulty) and 3 (tests). We depart by fifths of
the logged item's log-probability, also among the cases whose beam holds it, the only ones in which an order matters;
and by shuffled rewards, permuted within each group, in the strata that they make themselves: what strata alone produce,
since all but `suppressed` read the score of the very item whose place is then measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adagrpo.groups.score import ScoredGroups
from adagrpo.objective import Evidence

TOP = 10
QUANTILES = 5
DIFFICULTY, IN_BEAM = "difficulty", "in the beam"  # how the names of fifths begin


def gains(rank: Tensor) -> dict[str, NDArray[np.float64]]:
    """Return HR@10 and NDCG@10 of each case.

    Args:
        rank: (N,) place of the logged item in its list, from 0; infinite where the list does not hold it.

    >>> gains(torch.tensor([0.0, 9.0, 10.0, torch.inf]))["hr@10"]
    array([1., 1., 0., 0.])
    """
    hit = rank < TOP
    return {"hr@10": hit.double().numpy(), "ndcg@10": (hit / (rank + 2).log2()).double().numpy()}


def places(groups: ScoredGroups, scores: Tensor) -> Tensor:
    """Return the place of each logged item in its group by some scores.

    Args:
        groups: `N` groups of distinct rollouts.
        scores: (N, G) larger is better, not read where a rollout names no item.

    Returns:
        (N,) places from 0, a tie counts one half; infinite where the group does not hold the item.
    """
    mine = groups.rollouts.items == groups.targets.unsqueeze(1)
    own = scores.masked_fill(~mine, -torch.inf).amax(1, keepdim=True)
    usable = scores.masked_fill(groups.rollouts.items < 0, -torch.inf)
    above = ((usable > own).double() + 0.5 * ((usable == own) & ~mine).double()).sum(1)
    return above.masked_fill(~mine.any(1), torch.inf)


def strata_of(evidence: Evidence, thresholds: Mapping[str, Any]) -> dict[str, NDArray[np.bool_]]:
    """Return the strata of the gate's tests, (N,) each, `admitted` as `adagrpo.objective.adagrpo_gate` decides.

    Args:
        evidence: of `N` groups.
        thresholds: options of the gate: `tau` and `rho`, and `tau_reward` and `rho_from` if set.
    """
    tau, rho = thresholds["tau"], thresholds["rho"]
    within = tau if thresholds.get("tau_reward") is None else thresholds["tau_reward"]
    above, absent = evidence.negatives_above, evidence.negatives_above.isnan()
    far = above <= 1 - rho if thresholds.get("rho_from") == "bottom" else above >= rho
    hard = evidence.above_policy >= tau
    known = (evidence.above_reward < within) | (~evidence.above_reward.isnan() & (within >= 1))
    suppressed = (far | absent).all(1) & ~absent.all(1)
    admitted = hard & known & suppressed & ~evidence.degenerate
    masks = {
        "all": torch.ones_like(hard),
        "hard": hard,
        "not hard": ~hard,
        "known": known,
        "not known": ~known,
        "suppressed": suppressed,
        "not suppressed": ~suppressed,
        "hard, known": hard & known,
        "hard, not known": hard & ~known,
        "hard, suppressed": hard & suppressed,
        "hard, not suppressed": hard & ~suppressed,
        "admitted": admitted,
        "not admitted": ~admitted,
    }
    return {name: mask.numpy() for name, mask in masks.items()}


def rows_of(
    groups: ScoredGroups,
    own: Evidence,
    shuffled: Evidence,
    thresholds: Mapping[str, Any],
    among: NDArray[np.bool_],  # (N,)
    *,
    least: int = 2,
) -> list[dict[str, Any]]:
    """Return a row per stratum: the orders of policy, reward and shuffled reward, the last in strata of its own.

    Args:
        groups: one per case, with negatives of other cases' rollouts and scores of the logged items.
        own: evidence by the rewards.
        shuffled: evidence by the shuffled rewards.
        thresholds: see `strata_of`.
        among: (N,) bool, the cases that are measured.
        least: cases that an interval needs; `_half` of fewer is None.
    """
    policy = gains(places(groups, groups.rollouts.log_probs.double().sum(2)))
    by_reward = gains(places(groups, groups.rewards.rollouts.double()))
    by_chance = gains(places(groups, groups.shuffled_rewards.rollouts.double()))
    strata, chance_strata = strata_of(own, thresholds), strata_of(shuffled, thresholds)
    assert groups.target_log_probs is not None, "cases are drawn with the scores of their logged items"
    log_prob = groups.target_log_probs.double().sum(1).numpy()
    held = (groups.rollouts.items == groups.targets.unsqueeze(1)).any(1).numpy()
    fifths = {f"{DIFFICULTY}, {name}": mask for name, mask in fifths_of(log_prob, among).items()}
    fifths |= {f"{IN_BEAM}, {name}": mask & held for name, mask in fifths_of(log_prob, among & held).items()}
    rows = []
    for name, mask in (strata | fifths).items():
        kept = mask & among
        row: dict[str, Any] = {"stratum": name, "cases": int(kept.sum())}
        row |= _means("policy", policy, kept) | _means("reward", by_reward, kept)
        row |= _difference("gain", by_reward, policy, kept, least)
        other = chance_strata.get(name, mask) & among
        row |= {"shuffled_cases": int(other.sum())}
        row |= _difference("shuffled_gain", by_chance, policy, other, least)
        rows.append(row)
    return rows


def fifths_of(log_prob: NDArray[np.float64], among: NDArray[np.bool_]) -> dict[str, NDArray[np.bool_]]:
    """Return fifths of difficulty, the first the easiest.

    Args:
        log_prob: (N,) of the logged items.
        among: (N,) bool, the cases that are divided.

    >>> masks = fifths_of(np.array([-5.0, -1.0, -2.0, -3.0, -4.0]), np.ones(5, bool))
    >>> masks["fifth 1"].tolist(), masks["fifth 5"].tolist()
    ([False, True, False, False, False], [True, False, False, False, False])
    """
    within = np.linspace(0, 1, QUANTILES + 1)[1:-1]
    edges = np.quantile(log_prob[among], within) if among.any() else np.zeros(len(within))
    fifth = QUANTILES - 1 - np.searchsorted(edges, log_prob, side="right")  # 0 is the easiest
    return {f"fifth {index + 1}": fifth == index for index in range(QUANTILES)}


def _means(name: str, values: Mapping[str, NDArray[np.float64]], mask: NDArray[np.bool_]) -> dict[str, Any]:
    return {f"{name}_{key}": float(value[mask].mean()) if mask.any() else None for key, value in values.items()}


def _difference(
    name: str,
    first: Mapping[str, NDArray[np.float64]],
    second: Mapping[str, NDArray[np.float64]],
    mask: NDArray[np.bool_],
    least: int,
) -> dict[str, Any]:
    """Return the mean difference per case, and half of its 95 % interval by the standard error; one case per user."""
    found: dict[str, Any] = {}
    for key in first:
        values = (first[key] - second[key])[mask]
        half = float(1.96 * values.std(ddof=1) / np.sqrt(len(values))) if len(values) >= least else None
        found |= {f"{name}_{key}": float(values.mean()) if len(values) else None, f"{name}_{key}_half": half}
    return found
