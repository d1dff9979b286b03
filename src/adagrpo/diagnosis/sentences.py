"""The recommendation in words, from the numbers of a diagnosis. A loss is said as plainly as a gain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["sentences"]


def sentences(result: Mapping[str, Any]) -> list[str]:
    """What to do, and why.

    Args:
        result: of `adagrpo.diagnosis.diagnose`, all but the sentences.
    """
    verdict = result["verdict"]
    opening = {
        "use": "The reward may be trained on at tau {tau:g}, q_min {q_min:g}; re-ranking is the mark to beat.",
        "rerank_only": "Re-rank with this ranker at serving time; there is no ground to train on it.",
        "do_not_use": "Do not use this ranker here: nothing shows that it knows what the policy does not.",
    }[verdict["decision"]]
    return [opening.format(**verdict), _adds(result), _where(result), *_thresholds(result), _gate(result["gate"])]


def _adds(result: Mapping[str, Any]) -> str:
    row = result["all"]["minus_policy"]
    mix, ranker, weights = row["mix"], row["ranker"], result["settings"]["mix_weights"]
    return (
        f"Ordered by policy and ranker together (weights {weights[0]:g} and {weights[1]:g}, each chosen on the other"
        f" half of the users), NDCG@10 changes by {_change(mix['ndcg@10'], 4)} and HR@10 by"
        f" {_change(mix['hr@10'], 2, 100)} points; ordered by the ranker alone, HR@10 changes by"
        f" {_change(ranker['hr@10'], 2, 100)} points."
    )


def _where(result: Mapping[str, Any]) -> str:
    where, cells = result["verdict"]["where"], len(result["serving"])
    if not where:
        return "In no group of cases that can be told apart when serving is the gain established."
    if where[0] == result["all"]["cell"]:
        return f"The gain is established over all cases, and in {len(where) - 1} of {cells} cells known when serving."
    return f"The gain is established in: {'; '.join(where)}."


def _thresholds(result: Mapping[str, Any]) -> list[str]:
    """What speaks against training at the configured thresholds, where they do not pass."""
    settings, p_values = result["settings"], result["verdict"]["thresholds_adjusted_p"]
    rows = list(zip(result["grid"], p_values, strict=True))
    row, p = next(pair for pair in rows if (pair[0]["tau"], pair[0]["q_min"]) == (settings["tau"], settings["q_min"]))
    if p <= settings["level"]:
        return []
    reasons = []
    if row["excess"]["low"] <= 0:
        reasons.append("the gate admits no more groups than it would with shuffled rewards")
    if row["pull_on_hard"]["low"] <= 0:
        reasons.append("on hard groups the reward does not pull toward the logged item beyond the policy's own score")
    if row.get("accuracy_above_half", {"low": 1.0})["low"] <= 0:
        reasons.append("it does not order the rollouts of the admitted groups better than chance")
    if not reasons:
        pull = _change(row["pull_on_hard"], 2, 100)
        reasons = [f"the evidence (pull {pull} % of the codes) does not hold among {len(rows)} pairs of thresholds"]
    at = f"At tau {settings['tau']:g}, q_min {settings['q_min']:g} "
    return [at + ", and ".join(reasons) + f" (adjusted p {p:.3f})."]


def _gate(gate: Mapping[str, Any]) -> str:
    sample, beam, agreement = gate["sample"], gate["beam"], gate["agreement"]
    kappa = "" if agreement["kappa"] is None else f" (kappa {agreement['kappa']:.2f})"
    return (
        f"The gate admits {_rate(sample['admission'])} of the sampled groups and would admit"
        f" {_rate(sample['shuffled_admission'])} with shuffled rewards; of beam groups it admits"
        f" {_rate(beam['admission'])} and {_rate(beam['shuffled_admission'])}. The two decide alike in"
        f" {_rate(agreement['equal'])} of the cases{kappa}."
    )


def _rate(share: float) -> str:
    return f"{100 * share:.1f} %"


def _change(interval: Mapping[str, float], digits: int, factor: float = 1) -> str:
    mean, low, high = (factor * interval[name] for name in ("mean", "low", "high"))
    return f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
