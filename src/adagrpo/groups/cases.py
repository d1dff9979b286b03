"""A group per case, drawn, scored and examined as post-training would, by a policy that stays as it is.

Batches are random sets of cases, as in training, since they are where the negatives come from. The running standard
deviation of training is replaced by that of all rewards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adagrpo.config import ObjectiveConfig
from adagrpo.data.sequences import older_items, pad
from adagrpo.groups.draw import draw_groups
from adagrpo.groups.gated import gather_evidence
from adagrpo.groups.score import GroupRewards, ScoredGroups, score_groups
from adagrpo.objective import Evidence
from adagrpo.objective.gates import NegativeSource
from adagrpo.policies.policy import Policy
from adagrpo.rewards import Reward
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.types import Cases, Histories, Rollouts


def evidence_of(groups: ScoredGroups, options: ObjectiveConfig, *, shuffled: bool = False) -> Evidence:
    """Compute every diagnostic of every group, by its rewards or by shuffled ones."""
    rewards = groups.shuffled_rewards if shuffled else groups.rewards
    valid = rewards.rollouts[groups.rollouts.valid]
    running_std = valid.std() if len(valid) > 1 else torch.tensor(0.0)  # training keeps a running one
    return gather_evidence(groups, rewards, options, running_std=running_std)


@torch.no_grad()
def case_groups(
    policy: Policy[Any, Any],
    catalog: Catalog,
    reward: Reward,
    cases: Cases,
    objective: ObjectiveConfig,
    *,
    batch_size: int,
    max_history: int,
    seed: int,
    source: NegativeSource = "rollouts",
    report: Callable[[int, int], None] = lambda done, total: None,
) -> ScoredGroups:
    """Draw and score a group per case, with the scores of logged items; returned in the order of cases, on the CPU.

    Args:
        batch_size: cases at a time; negatives come from the same batch.
        source: where negatives come from, see `adagrpo.groups.score`.
        report: called with (cases done, cases in all).
    """
    policy.eval()
    generator, device = torch.Generator().manual_seed(seed), catalog.codes.device
    order = torch.randperm(len(cases), generator=generator).numpy()
    parts = []
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        padded = pad(cases.histories, rows, max_history)
        older = older_items(cases.histories, rows, max_history).to(device) if objective.exclude_history else None
        histories = Histories(padded.items.to(device), padded.lengths.to(device), older=older)
        targets = torch.from_numpy(cases.targets[rows].astype(np.int64)).to(device)
        drawn = draw_groups(policy, catalog, histories, targets, objective, generator, score_targets=True)
        parts.append(score_groups(reward, drawn, objective.negatives, generator, source=source))
        report(first + len(rows), len(order))
    return _joined(parts, torch.from_numpy(np.argsort(order)))


def _joined(parts: Sequence[ScoredGroups], order: Tensor) -> ScoredGroups:
    """Join the groups of all batches on the CPU, rows in an order."""

    def join(tensors: Sequence[Tensor | None]) -> Tensor:
        return torch.cat([tensor.cpu() for tensor in tensors if tensor is not None])[order]

    def join_rollouts(rollouts: Sequence[Rollouts]) -> Rollouts:
        codes, items = join([part.codes for part in rollouts]), join([part.items for part in rollouts])
        return Rollouts(codes, items, join([part.log_probs for part in rollouts]).float())

    def join_rewards(rewards: Sequence[GroupRewards]) -> GroupRewards:
        return GroupRewards(
            join([part.target for part in rewards]),
            join([part.rollouts for part in rewards]),
            join([part.negatives for part in rewards]),
            sum(part.scored for part in rewards),
        )

    whole = Histories.stack([part.histories for part in parts])
    return ScoredGroups(
        Histories(join([whole.items]), join([whole.lengths])),
        join([part.targets for part in parts]),
        join_rollouts([part.sampled for part in parts]),
        join_rollouts([part.rollouts for part in parts]),
        join([part.target_codes for part in parts]),
        join([part.target_log_probs for part in parts]).float(),
        join([part.negatives for part in parts]),
        join_rewards([part.rewards for part in parts]),
        join_rewards([part.shuffled_rewards for part in parts]),
        sum(part.constant * len(part.targets) for part in parts) / len(order),
    )
