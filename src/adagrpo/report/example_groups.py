"""Some groups of rollouts, told in words: what the user did, what the policy drew, what the gate makes of it and why.

Read from `report/rollouts/rollouts.json`, which `adagrpo.pipeline.stages.example_rollouts` writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adagrpo.report.tables import MISSING, Table

__all__ = ["ExampleGroup", "decision_text", "example_groups"]

VALIDITY = {"names_no_item": "names no item", "in_history": "already in the history, counted as no item"}


@dataclass(frozen=True)
class ExampleGroup:
    """One validation case on the page."""

    heading: str
    history: tuple[str, ...]  # titles, the oldest first
    earlier: int  # items of the history that are not listed
    decision: str
    rollouts: Table
    left_out: int  # rollouts that are not listed


def example_groups(content: Mapping[str, Any]) -> list[ExampleGroup]:
    """The cases of the page, those that were admitted first.

    Args:
        content: of `rollouts.json`.
    """
    groups = []
    for example in content["examples"]:
        admitted = example["outcome"] == "admitted"
        groups.append(
            ExampleGroup(
                heading=f"{'Admitted' if admitted else 'Not admitted'}: logged next was {example['target']['title']}",
                history=tuple(example["history"]),
                earlier=example["history_length"] - len(example["history"]),
                decision=decision_text(example, content["gate"], content["thresholds"]),
                rollouts=_table(example, admitted=admitted),
                left_out=content["num_generations"] - len(example["rollouts"]),
            )
        )
    return groups


def decision_text(example: Mapping[str, Any], gate: str, thresholds: Mapping[str, Any]) -> str:
    """Say why the gate admits a group, or does not.

    Args:
        example: `outcome` and `evidence` of a group.
        gate: `adagrpo` or `rollout_miss`.
        thresholds: of the gate.

    Example:
        >>> easy = {"outcome": "easy", "evidence": {"miss": 0.25, "q": 1.0}}
        >>> decision_text(easy, "rollout_miss", {"miss_min": 0.5, "q_min": 0.95})
        'Not admitted, already easy: 25 % of the rollouts miss the logged item (the gate asks for 50 % or more).'
    """
    if example["outcome"] == "degenerate":
        return (
            "Not admitted, no order in the group: fewer than two different items were drawn, or the reward says the"
            " same of all."
        )
    reads = _rank_tests if gate == "adagrpo" else _miss_tests
    hard, known = reads(example["evidence"], thresholds)
    match example["outcome"]:
        case "admitted":
            return f"Admitted: {hard}; {known}. The reward term trains on this group."
        case "easy":
            return f"Not admitted, already easy: {hard}."
        case _:
            return f"Not admitted, the reward cannot tell: {known}."


def _rank_tests(evidence: Mapping[str, Any], thresholds: Mapping[str, Any]) -> tuple[str, str]:
    tau, rho = thresholds["tau"], thresholds["rho"]
    within = tau if thresholds["tau_reward"] is None else thresholds["tau_reward"]
    hard = (
        f"the policy puts {_share(evidence['above_policy'], tau)} of the rollouts above the logged item (the gate asks"
        f" for {_whole(tau)} or more)"
    )
    known = f"the reward puts {_share(evidence['above_reward'], within)} above it (fewer than {_whole(within)})"
    negatives = evidence["negatives_above"]
    if not negatives:
        return hard, f"{known}, and no other sample gave an item to compare with"
    top = thresholds["rho_from"] == "top"
    nearest, limit = (min(negatives), rho) if top else (max(negatives), 1 - rho)
    asked = f"{_whole(limit)} or {'more' if top else 'fewer'}"
    which = "best" if top else "worst"
    return (
        hard,
        f"{known}, and {_share(nearest, limit)} above the {which} of {len(negatives)} items of others ({asked})",
    )


def _miss_tests(evidence: Mapping[str, Any], thresholds: Mapping[str, Any]) -> tuple[str, str]:
    miss_min, q_min = thresholds["miss_min"], thresholds["q_min"]
    hard = (
        f"{_share(evidence['miss'], miss_min)} of the rollouts miss the logged item (the gate asks for"
        f" {_whole(miss_min)} or more)"
    )
    known = (
        f"the reward puts the logged item above {_share(evidence['q'], q_min)} of the other items ({_whole(q_min)} or"
        " more)"
    )
    return hard, known


def _whole(threshold: float) -> str:
    return f"{100 * threshold:g} %"


def _share(value: float, threshold: float) -> str:
    """In whole per cent, or finer where that would print the threshold of a value that is another."""
    whole = f"{100 * value:.0f} %"
    return f"{100 * value:.1f} %" if whole == f"{100 * threshold:g} %" and value != threshold else whole


def _table(example: Mapping[str, Any], *, admitted: bool) -> Table:
    """The logged item, then each rollout, with what training would do to its probability."""
    target = example["target"]
    first = ("logged", _codes(target["codes"]), target["title"], f"{target['log_prob']:.2f}", _number(target["reward"]))
    lines = [(*first, MISSING, MISSING)]
    for place, rollout in enumerate(example["rollouts"], start=1):
        advantage = rollout["advantage"]
        lines.append(
            (
                str(place),
                _codes(rollout["codes"]),
                _item(rollout),
                f"{rollout['log_prob']:.2f}",
                _number(rollout["reward"]),
                f"{advantage:+.2f}",
                _effect(advantage) if admitted else "nothing",
            )
        )
    header = ("rollout", "codes", "item", "log-prob.", "reward", "advantage", "training would")
    return Table(header, tuple(lines), ("left", "left", "left", "right", "right", "right", "left"))


def _item(rollout: Mapping[str, Any]) -> str:
    if rollout["validity"] == "valid":
        return f"{rollout['title']}{' (the logged item)' if rollout['is_target'] else ''}"
    note = VALIDITY[rollout["validity"]]
    return f"({note})" if rollout["title"] is None else f"{rollout['title']} ({note})"


def _effect(advantage: float) -> str:
    if abs(advantage) < 0.005:
        return "leave it"
    return "raise it" if advantage > 0 else "lower it"


def _codes(codes: list[int]) -> str:
    return " ".join(map(str, codes))


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"
