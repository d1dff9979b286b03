r"""Draws the groups that post-training would see, on validation cases, with a policy that stays as it is.

    sample   o_bg ~ π(· | x_b)         beam   the policy's own top G
    pairs(b) = {y_b} ∪ {valid items of the group} ∪ {M targets of other cases of the same batch}

One group of each kind, scored by one call to the reward, and beside the scores the same scores `shuffled` among the
candidates of each row. Batches are random sets of cases, as in training, since they are where the negatives come from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from adagrpo.config import ObjectiveConfig
from adagrpo.data.sequences import pad
from adagrpo.decoding import score_sequences
from adagrpo.rewards import (
    GroupRewards,
    Reward,
    candidate_scores,
    distinct_candidates,
    in_batch_negatives,
    read_rewards,
    shuffled,
)
from adagrpo.rollouts import beam_rollouts, draw_rollouts
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.types import Cases, Histories

__all__ = ["Groups", "draw_groups"]


class Groups(NamedTuple):
    """One group a case, in the order of the cases."""

    targets: Tensor  # (N,) int64 logged items
    items: Tensor  # (N, G) int64, -1 where a rollout names no item
    shared: Tensor  # (N, G) float32, share of the leading codes that a rollout has in common with the logged item
    log_probs: Tensor  # (N, G, L) float32, of the distribution that was drawn from
    target_log_probs: Tensor  # (N, L) float32, of the same distribution
    negatives: Tensor  # (N, M) int64, -1 where absent
    rewards: GroupRewards
    shuffled: GroupRewards


@torch.no_grad()
def draw_groups(
    policy: Any,
    catalog: Catalog,
    reward: Reward,
    cases: Cases,
    objective: ObjectiveConfig,
    *,
    batch_size: int,
    max_history: int,
    seed: int,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Groups:
    """Draw and score a group a case.

    Args:
        policy: a `Policy` that is also an `nn.Module`; put into evaluation mode.
        catalog: says which item a rollout names.
        reward: scores target, rollouts and negatives.
        cases: `N` cases.
        objective: which rollouts (`rollout`, `num_generations`, `temperature`, `constrained`) and how many negatives.
        batch_size: cases at a time; negatives come from the same batch.
        max_history: items of a history that the policy sees, the last ones.
        seed: of the batches and of everything drawn.
        report: called with (cases done, cases in all).
    """
    policy.eval()
    generator, device = torch.Generator().manual_seed(seed), catalog.codes.device
    order = torch.randperm(len(cases), generator=generator).numpy()
    parts = []
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        padded = pad(cases.histories, rows, max_history)
        histories = Histories(padded.items.to(device), padded.lengths.to(device))
        targets = torch.from_numpy(cases.targets[rows].astype(np.int64)).to(device)
        parts.append(_draw(policy, catalog, reward, histories, targets, objective, generator))
        report(first + len(rows), len(order))
    return _joined(parts, torch.from_numpy(np.argsort(order)))


def _draw(
    policy: Any,
    catalog: Catalog,
    reward: Reward,
    histories: Histories,
    targets: Tensor,  # (B,)
    objective: ObjectiveConfig,
    generator: torch.Generator,
) -> Groups:
    def uniforms(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator).to(targets.device)

    context, codes, trie = policy.encode(histories), catalog.codes[targets], catalog.trie
    size, constrained = objective.num_generations, objective.constrained
    if objective.rollout == "beam":
        rollouts = beam_rollouts(policy, context, trie, size, constrained=constrained)
        own = score_sequences(policy, context, codes.unsqueeze(1))
    else:
        given = {"temperature": objective.temperature}
        draws = uniforms(len(targets), size, codes.shape[1])
        rollouts = draw_rollouts(policy, context, trie, draws, constrained=constrained, **given)
        own = score_sequences(policy, context, codes.unsqueeze(1), trie=trie if constrained else None, **given)
    negatives = in_batch_negatives(targets, histories, uniforms(len(targets), len(targets)), objective.negatives)
    candidates = distinct_candidates(targets, rollouts.items, negatives)
    scores = candidate_scores(reward, histories, candidates)
    fake = shuffled(candidates, scores, uniforms(*scores.shape))
    shared = (rollouts.codes == codes.unsqueeze(1)).cumprod(dim=2).float().mean(dim=2)
    return Groups(
        targets,
        rollouts.items,
        shared,
        rollouts.log_probs.float(),
        own.squeeze(1).float(),
        negatives,
        read_rewards(candidates, scores),
        read_rewards(candidates, fake),
    )


def _joined(parts: list[Groups], order: Tensor) -> Groups:
    """The groups of all batches on the CPU, their rows taken in an order."""

    def join(tensors: list[Tensor]) -> Tensor:
        return torch.cat([tensor.cpu() for tensor in tensors])[order]

    def join_rewards(found: list[GroupRewards]) -> GroupRewards:
        return GroupRewards(
            join([part.target for part in found]),
            join([part.rollouts for part in found]),
            join([part.negatives for part in found]),
            sum(part.scored for part in found),
        )

    return Groups(
        join([part.targets for part in parts]),
        join([part.items for part in parts]),
        join([part.shared for part in parts]),
        join([part.log_probs for part in parts]),
        join([part.target_log_probs for part in parts]),
        join([part.negatives for part in parts]),
        join_rewards([part.rewards for part in parts]),
        join_rewards([part.shuffled for part in parts]),
    )
