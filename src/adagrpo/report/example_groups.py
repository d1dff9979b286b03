"""Some groups of rollouts, told in words: what the user did, what the policy drew, what the gate makes of it and why.

Read from `report/rollouts/rollouts.json`, which `adagrpo.pipeline.stages.example_rollouts` writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adagrpo.objective import GATES, Gate
from adagrpo.report.tables import MISSING, Table

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
        gate: the name of one that tests the logged item.

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
    evidence, words = example["evidence"], GATES[gate].reasons
    if words is None:
        hard = known = _numbers(GATES[gate], evidence, thresholds)
    else:
        hard, known = words(evidence, thresholds)
    match example["outcome"]:
        case "admitted":
            return f"Admitted: {'; '.join(dict.fromkeys((hard, known)))}. The reward term trains on this group."
        case "easy":
            return f"Not admitted, already easy: {hard}."
        case _:
            return f"Not admitted, the reward cannot tell: {known}."


def _numbers(gate: Gate, evidence: Mapping[str, Any], thresholds: Mapping[str, Any]) -> str:
    """List what a gate read and what it asks for, where it has no words of its own."""
    read = ", ".join(f"{name} {evidence[name]:.3g}" for name in gate.reads if isinstance(evidence.get(name), float))
    return f"{read} (the gate asks for {', '.join(f'{name} {value}' for name, value in thresholds.items())})"


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
