"""The groups of an optimiser step once they are judged, and what is logged about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from adagrpo.objective import GateDecision, kl_k3, rollout_entropy
from adagrpo.rewards import GroupRewards
from adagrpo.trainer.gating import Evidence
from adagrpo.types import Histories, Rollouts

__all__ = ["Judged", "stack", "summary"]


class Judged(NamedTuple):
    """The groups of an optimiser step after the gate."""

    histories: Histories  # (B, T)
    targets: Tensor  # (B,) -1 at the end of a history, which no logged item follows
    rewards: Tensor  # (B, G) as the reward term reads them, NaN where invalid
    rollouts: Rollouts  # (B, G, L)
    decision: GateDecision
    reference: Tensor | None  # (B, G, L) log-probabilities under the starting policy, where they are needed
    evidence: Evidence | None = None  # by the reward as it is, whatever the gate; None at the ends of histories
    shuffled_evidence: Evidence | None = None  # by the same scores, permuted within each group


def stack(parts: Sequence[Histories]) -> Histories:
    """Histories of several micro-batches in one, padded to the longest."""
    length = max(part.items.shape[1] for part in parts)
    items = [torch.nn.functional.pad(part.items, (0, length - part.items.shape[1])) for part in parts]
    users = [part.users for part in parts if part.users is not None]
    return Histories(torch.cat(items), torch.cat([part.lengths for part in parts]), torch.cat(users) if users else None)


def summary(judged: Judged, drawn: Rollouts, rewards: GroupRewards) -> dict[str, float]:
    """What a step logs about its groups; a mean over nothing is left out."""
    decision = judged.decision
    values = {
        "invalid_share": float((~drawn.valid).float().mean(dim=1).mean()),
        "entropy": float(rollout_entropy(drawn.log_probs).mean()),
        "admission": float(decision.admitted.float().mean()),
        "rejected_easy": float(decision.easy.float().mean()),
        "rejected_undiscriminated": float(decision.undiscriminated.float().mean()),
        "rejected_degenerate": float(decision.degenerate.float().mean()),
        "rejected_closed": float(decision.closed.float().mean()),
        "scored_pairs": float(rewards.scored),
    }
    if bool(judged.rollouts.valid.any()):
        values["reward"] = float(rewards.rollouts[judged.rollouts.valid].mean())
    known = judged.targets >= 0
    contains = (judged.rollouts.items == judged.targets.unsqueeze(1)).any(1)
    if bool(known.all()):
        values["contains_target"] = float(contains.float().mean())
    if bool(known.all()) and bool(decision.admitted.any()):
        values["admitted_contains_target"] = float(contains[decision.admitted].float().mean())
    if judged.reference is not None:
        values["kl"] = float(kl_k3(judged.rollouts.log_probs, judged.reference).mean(dim=2).mean(dim=1).mean())
    return values
