"""The mean reward of another policy, from answers with logged probabilities.

    w_i = π(a_i | x_i) / π_0(a_i | x_i)

    IPS      Σ w_i r_i / n                                                    (Horvitz and Thompson 1952)
    SNIPS    Σ w_i r_i / Σ w_i                                                (Swaminathan and Joachims 2015)
    DR       Σ [q(x_i, π) + w_i (r_i - q(x_i, a_i))] / n                      (Dudik, Langford and Li 2011)

IPS and DR are unbiased if the logged probabilities are right; SNIPS is consistent and has a lower variance. Intervals
are clustered by user; that of SNIPS is linearised.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from adagrpo.off_policy.overlap import effective_size


class Estimate(NamedTuple):
    """A mean reward per answer, with its interval."""

    value: float
    low: float
    high: float
    standard_error: float
    effective_size: float  # of the weights


def ips(
    rewards: NDArray[np.floating],  # (N,)
    weights: NDArray[np.floating],  # (N,)
    *,
    users: NDArray[np.integer] | None = None,  # (N,)
    level: float = 0.95,
) -> Estimate:
    """Estimate the mean reward by inverse propensity scoring.

    Args:
        weights: (N,) probability under the target over that under the logging policy.
        users: (N,) user of each answer; None: all different.

    Raises:
        ValueError: shapes differ, or there are fewer than two users.

    >>> round(ips(np.array([1.0, 0.0, 1.0, 0.0]), np.array([2.0, 2.0, 0.5, 0.5])).value, 3)
    0.625
    """
    _check(rewards=rewards, weights=weights)
    return mean_of(weights * rewards, weights, users, level)


def snips(
    rewards: NDArray[np.floating],  # (N,)
    weights: NDArray[np.floating],  # (N,)
    *,
    users: NDArray[np.integer] | None = None,  # (N,)
    level: float = 0.95,
) -> Estimate:
    """Estimate the mean reward by self-normalised inverse propensity scoring; arguments as of `ips`.

    >>> round(snips(np.array([1.0, 0.0, 1.0, 0.0]), np.array([2.0, 2.0, 0.5, 0.5])).value, 3)
    0.5
    """
    _check(rewards=rewards, weights=weights)
    total = float(weights.sum())
    if total <= 0:
        raise ValueError("weights must not all be 0")
    value = float((weights * rewards).sum()) / total
    # ratio of two means to first order: value + mean of w (r - value) / mean of w
    return mean_of(value + weights * (rewards - value) * len(weights) / total, weights, users, level)


def doubly_robust(
    rewards: NDArray[np.floating],  # (N,)
    weights: NDArray[np.floating],  # (N,)
    predicted: NDArray[np.floating],  # (N,)
    expected: NDArray[np.floating],  # (N,)
    *,
    users: NDArray[np.integer] | None = None,  # (N,)
    level: float = 0.95,
) -> Estimate:
    """Estimate the mean reward by a model, corrected by its weighted errors on the log; see `ips`.

    Args:
        predicted: (N,) q(x_i, a_i), of the item shown, by a model that was not fitted on this answer.
        expected: (N,) q(x_i, π) = Σ_a π(a | x_i) q(x_i, a).
    """
    _check(rewards=rewards, weights=weights, predicted=predicted, expected=expected)
    return mean_of(expected + weights * (rewards - predicted), weights, users, level)


def mean_of(
    values: NDArray[np.floating],  # (N,)
    weights: NDArray[np.floating],  # (N,)
    users: NDArray[np.integer] | None,
    level: float,
) -> Estimate:
    """Return the mean of values with an interval over m users, Student's t with m - 1 degrees of freedom.

    With c_u the sum of (v_i - mean) over the answers of a user, the squared standard error is m / (m - 1) Σ c_u² / n².
    """
    if users is not None and users.shape != values.shape:
        raise ValueError(f"users must be {values.shape}, got {users.shape}")
    owners = np.arange(len(values)) if users is None else np.unique(users, return_inverse=True)[1]
    mean = float(values.mean())
    sums = np.bincount(owners, weights=values - mean)
    count = len(sums)
    if count < 2:
        raise ValueError("an interval needs answers of two users")
    error = float(np.sqrt(count / (count - 1) * np.square(sums).sum())) / len(values)
    half = float(stats.t.ppf(0.5 + level / 2, count - 1)) * error
    return Estimate(mean, mean - half, mean + half, error, effective_size(weights))


def _check(**arrays: NDArray[np.floating]) -> None:
    (first, *_) = arrays.values()
    for name, values in arrays.items():
        if values.ndim != 1 or values.shape != first.shape or len(values) == 0:
            raise ValueError(f"{name} must be (N,) as the others are, got {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError(f"{name} holds a value that is not finite")
