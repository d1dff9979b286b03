"""The reward of another policy's lists under the cascade assumption.

    cascade (RIPS)    Σ_i Σ_k  W_ik r_ik / n,    W_ik = Π_{j ≤ k} π(i_j | those above) / π_0(i_j | those above)

The reward at a rank is weighted by the probability ratio of the list down to that rank. It is unbiased if users read
from the top and are not influenced by what is below, and varies less than the weight of the whole list (McInerney,
Brost, Chandar, Mehrotra and Carterette 2020). Self-normalised, each rank is divided by its mean weight.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from adagrpo.off_policy.estimators import Estimate, mean_of
from adagrpo.off_policy.overlap import effective_size


def cascade(
    rewards: NDArray[np.floating],  # (N, K)
    target: NDArray[np.floating],  # (N, K)
    logged: NDArray[np.floating],  # (N, K)
    *,
    normalised: bool = True,
    users: NDArray[np.integer] | None = None,  # (N,)
    level: float = 0.95,
) -> Estimate:
    """Estimate the mean sum of the rewards of a list.

    Args:
        rewards: (N, K), 0 at ranks beyond the end of a list.
        target: (N, K) log-probability of each item at its rank under the target, given those above; -inf where the
            target never shows it, 0 beyond the end of a list.
        logged: (N, K) the same under the served policy (`log_propensities` of the exposure log); finite.
        users: (N,) see `adagrpo.off_policy.ips`.

    Returns:
        The estimate, with the smallest effective size of all ranks.
    """
    if rewards.ndim != 2 or target.shape != rewards.shape or logged.shape != rewards.shape or rewards.size == 0:
        raise ValueError(f"rewards, target and logged must be (N, K): {rewards.shape}, {target.shape}, {logged.shape}")
    if not (np.isfinite(rewards).all() and np.isfinite(logged).all()):
        raise ValueError("rewards or logged hold a value that is not finite")
    if np.isnan(target).any() or (target == np.inf).any():
        raise ValueError("target holds NaN or infinity")
    return position_weighted(rewards, np.exp((target - logged).cumsum(1)), normalised, users, level)


def position_weighted(
    rewards: NDArray[np.floating],  # (N, K)
    weights: NDArray[np.floating],  # (N, K)
    normalised: bool,
    users: NDArray[np.integer] | None,
    level: float,
) -> Estimate:
    """Estimate the mean sum of the rewards of a list, with a weight per rank; see `cascade`."""
    thinnest = weights[:, int(np.argmin([effective_size(column) for column in weights.T]))]
    if not normalised:
        return mean_of((weights * rewards).sum(1), thinnest, users, level)
    means = weights.mean(0)
    if (means <= 0).any():
        raise ValueError(f"the target never shows a list of the log down to place {int(np.argmax(means <= 0)) + 1}")
    values = (weights * rewards).mean(0) / means  # (K,)
    linear = values.sum() + (weights * (rewards - values) / means).sum(1)
    return mean_of(linear, thinnest, users, level)
