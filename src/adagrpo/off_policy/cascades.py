"""The reward of lists that another policy would have shown, where what users do at a place hangs on what is above it.

    cascade (RIPS)    Σ_i Σ_k  W_ik r_ik / n,    W_ik = Π_{j ≤ k} π(i_j | those above) / π_0(i_j | those above)

The reward of a place is weighted by the probability of the list down to that place alone. It is unbiased if users read
from the top and what is below a place does not change what they do there; the weight of the whole list, which needs no
such assumption, spreads far more (McInerney, Brost, Chandar, Mehrotra and Carterette 2020). Self-normalised, each place
is divided by the mean of its weights.

The probabilities are those that the exposure log has for each place of a drawn list (`log_propensities`), and those
that the target would have drawn the same list with.
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
    """The mean sum of the rewards of a list.

    Args:
        rewards: of each place, 0 at places that a list does not have.
        target: log-probability of each item at its place under the target, given those above; -inf where the target
            never shows it; 0 at places that a list does not have.
        logged: the same under the policy that was served; always finite.
        normalised: divide each place by the mean of its weights.
        users: (N,) see `adagrpo.off_policy.ips`.

    Returns:
        The estimate; its effective size is that of the weights of the place with the least, mostly the last one.

    Raises:
        ValueError: shapes differ, or a value is not what it may be.
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
    """The mean sum of the rewards of a list, each place with a weight of its own; see `cascade`."""
    thinnest = weights[:, int(np.argmin([effective_size(column) for column in weights.T]))]
    if not normalised:
        return mean_of((weights * rewards).sum(1), thinnest, users, level)
    means = weights.mean(0)
    if (means <= 0).any():
        raise ValueError(f"the target never shows a list of the log down to place {int(np.argmax(means <= 0)) + 1}")
    values = (weights * rewards).mean(0) / means  # (K,)
    linear = values.sum() + (weights * (rewards - values) / means).sum(1)
    return mean_of(linear, thinnest, users, level)
