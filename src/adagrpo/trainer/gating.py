"""What the gate reads of each group, and what each gate makes of it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from adagrpo.config import Gate, ObjectiveConfig
from adagrpo.objective import (
    GateDecision,
    adagrpo_gate,
    all_gate,
    degenerate_groups,
    difficulty_gate,
    discriminability,
    discriminability_gate,
    inverted_gate,
    none_gate,
    random_gate,
)
from adagrpo.rewards import GroupRewards
from adagrpo.types import Rollouts

__all__ = ["Evidence", "decide", "gather_evidence"]


class Evidence(NamedTuple):
    """What the diagnostics say of `B` groups."""

    difficulty: Tensor  # (B,)
    q: Tensor  # (B,) discriminability
    degenerate: Tensor  # (B,) bool, the group's rewards give no order


def gather_evidence(
    rewards: GroupRewards,
    rollouts: Rollouts,  # (B, G, L)
    negatives: Tensor,  # (B, M)
    targets: Tensor,  # (B,)
    difficulty: Tensor,  # (B,)
    *,
    spread: Tensor,  # ()
    floor: float,
) -> Evidence:
    """Discriminability and degeneracy by some rewards, beside a difficulty that no reward decides.

    Args:
        rewards: of the groups, as they are or shuffled.
        rollouts: of the groups.
        negatives: in-batch negatives.
        targets: logged items.
        difficulty: of each sample for the policy.
        spread: the running standard deviation of rewards.
        floor: a group whose rewards differ by less than this share of `spread` is degenerate.
    """
    q = discriminability(rewards.target, rewards.rollouts, rollouts.items, rewards.negatives, negatives, targets).q
    degenerate = degenerate_groups(rewards.rollouts, rollouts.items, spread=spread, relative_floor=floor)
    return Evidence(difficulty, q, degenerate)


def decide(
    gate: Gate,
    evidence: Evidence,
    options: ObjectiveConfig,
    uniforms: Tensor | None = None,  # (B,)
) -> GateDecision:
    """The decision of any gate but `oracle`, which reads what the reward does not say.

    Args:
        gate: `shuffled` is the gate `adagrpo` on the evidence of shuffled rewards.
        evidence: of the groups.
        options: thresholds.
        uniforms: (B,) draws from [0, 1) for `random` and `inverted`.

    Raises:
        ValueError: `random` or `inverted` without draws, or `oracle`.
    """
    difficulty, q, degenerate = evidence
    match gate:
        case "adagrpo" | "shuffled":
            return adagrpo_gate(difficulty, q, degenerate, tau=options.tau, q_min=options.q_min)
        case "all":
            return all_gate(degenerate)
        case "none":
            return none_gate(degenerate)
        case "difficulty":
            return difficulty_gate(difficulty, degenerate, tau=options.tau)
        case "discriminability":
            return discriminability_gate(q, degenerate, q_min=options.q_min)
        case "random" | "inverted" if uniforms is not None:
            shadow = adagrpo_gate(difficulty, q, degenerate, tau=options.tau, q_min=options.q_min)
            control = random_gate if gate == "random" else inverted_gate
            return control(shadow, degenerate, uniforms)
        case _:
            without = " without draws" * (gate in ("random", "inverted"))
            raise ValueError(f"gate '{gate}' is not decided by evidence{without}")
