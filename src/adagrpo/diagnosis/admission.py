r"""Admission by the gate, and the direction of the reward.

    admission    share of the groups with d_b ≥ τ, q_b ≥ q_min, not degenerate; beside it that of shuffled rewards
    pull_b       mean over the distinct valid rollouts o ≠ y_b of e(o) · s(o) / σ_b,
                 s the share of leading codes that o has in common with y_b, σ_b the deviation of the reward r,
                 e what is left of r after the least-squares line on log π(o | x_b)

`pull` says whether the reward moves probability toward the codes of the logged item, which is all that a group without
this item can do for it, beyond what a reward that repeats the policy would do: sharpening the policy needs no ranker.
It is 0 in expectation for a reward whose scores could be swapped among the rollouts, and it leaves the score of `y_b`
out, so that the case's own `q_b` is not read twice. Among the *admitted* it would flatter a reward that is smooth over
the codes and wrong, since neighbours of a highly scored item are scored highly: it is therefore read on all hard
groups, whatever their `q_b`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adagrpo.config import ObjectiveConfig
from adagrpo.groups.evidence import gather_evidence
from adagrpo.groups.score import ScoredGroups
from adagrpo.objective import Evidence, first_occurrence


def evidence_of(groups: ScoredGroups, options: ObjectiveConfig, *, shuffled: bool = False) -> Evidence:
    """Difficulty, discriminability and degeneracy of every group, by the spread of all rewards or shuffled ones."""
    rewards = groups.shuffled_rewards if shuffled else groups.rewards
    valid = rewards.rollouts[groups.rollouts.valid]
    spread = valid.std() if len(valid) > 1 else torch.tensor(0.0)  # training keeps a running one
    return gather_evidence(groups, rewards, options, spread=spread)


def pull(groups: ScoredGroups) -> NDArray[np.float64]:
    """(N,) see the module's text; in shares of codes for a reward one standard deviation higher.

    0 where fewer than three distinct valid rollouts other than the logged item exist, or they score alike.
    """
    others = _others(groups).numpy()
    rewards = _centred(groups.rewards.rollouts.double().numpy(), others)
    deviation = np.sqrt((rewards**2).sum(axis=1) / np.maximum(others.sum(axis=1), 1))
    own = _centred(groups.rollouts.log_probs.double().sum(-1).numpy(), others)
    size = (own**2).sum(axis=1)
    slope = (own * rewards).sum(axis=1) / np.where(size > 0, size, 1.0)
    left = rewards - slope[:, None] * own
    total = (left * _shared(groups).double().numpy()).sum(axis=1) / np.maximum(others.sum(axis=1), 1)
    return np.asarray(np.where(deviation > 0, total / np.where(deviation > 0, deviation, 1.0), 0.0))


def _centred(values: NDArray[np.float64], counted: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Less the mean of the counted places of each row; 0 elsewhere."""
    kept = np.where(counted, values, 0.0)
    return np.where(
        counted, kept - kept.sum(axis=1, keepdims=True) / np.maximum(counted.sum(axis=1, keepdims=True), 1), 0.0
    )


def _others(groups: ScoredGroups) -> Tensor:  # (N, G) bool
    """The distinct valid rollouts other than the logged item."""
    items = groups.rollouts.items
    return first_occurrence(items) & (items != groups.targets.unsqueeze(1))


def _shared(groups: ScoredGroups) -> Tensor:  # (N, G)
    """Share of the leading codes that a rollout has in common with the logged item."""
    assert groups.target_codes is not None, "every case has a logged item"
    return (groups.rollouts.codes == groups.target_codes.unsqueeze(1)).cumprod(dim=2).float().mean(dim=2)
