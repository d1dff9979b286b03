"""The mean reward of another policy, from answers with logged probabilities.

    w_i = π(a_i | x_i) / π_0(a_i | x_i)

    IPS      Σ w_i r_i / n                                                    (Horvitz and Thompson 1952)
    SNIPS    Σ w_i r_i / Σ w_i                                                (Swaminathan and Joachims 2015)
    DR       Σ [q(x_i, π) + w_i (r_i - q(x_i, a_i))] / n                      (Dudik, Langford and Li 2011)
    cascade  Σ_i Σ_k W_ik r_ik / n,  W_ik = Π_{j ≤ k} w_ij                    (RIPS; McInerney et al. 2020)

IPS and DR are unbiased if the logged probabilities are right; SNIPS is consistent and has a lower variance. The cascade
weights the reward at a rank by the probability ratio of the list down to that rank: it is unbiased if users read from
the top and are not influenced by what is below; self-normalised, each rank is divided by its mean weight. Intervals are
clustered by user; those of ratios are linearised.

    effective size      n_eff = (Σ w)² / Σ w²                                 (Kish 1965)
    mean weight         E[w] = 1 where the log's probabilities are right

A log is refused where few answers carry most of the weight, or where the mean weight differs from 1: the logged
probabilities are then wrong, or the target shows items that the log never did.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from adagrpo.types import Floats, Ints

LEAST = 100.0  # effective answers; normal intervals are unreliable below
LARGEST = 0.1  # share of all weight on one answer
ERRORS, SLACK = 4.0, 0.01  # tolerated |mean weight - 1|: standard errors, plus slack


class ThinOverlap(ValueError):
    """A log with too little overlap; the message says why."""


class Overlap(NamedTuple):
    """Statistics of the importance weights of a log."""

    effective_size: float
    largest: float  # share of all weight on one answer
    mean: float  # of the weights; 1 where the probabilities are right
    mean_error: float  # its standard error

    @property
    def problem(self) -> str | None:
        """Why not to estimate from this log, or None."""
        if self.effective_size < LEAST:
            return f"all answers together weigh as much as {self.effective_size:.0f}; at least {LEAST:.0f} are needed"
        if self.largest > LARGEST:
            return f"one answer carries {self.largest:.0%} of all weight"
        if abs(self.mean - 1) > ERRORS * self.mean_error + SLACK:
            return (
                f"weights are {self.mean:.3f} on average where right ones are 1 (standard error {self.mean_error:.3f}):"
                " the logged probabilities are not those of the policy that was served, or it never shows what the"
                " other policy does"
            )
        return None

    def check(self) -> None:
        """Raise ThinOverlap where there is a problem."""
        if self.problem is not None:
            raise ThinOverlap(self.problem)


def effective_size(weights: NDArray[np.floating]) -> float:  # (N,)
    """Return the effective sample size: (Σ w)² / Σ w²."""
    squares = float(np.square(weights).sum())
    return float(weights.sum()) ** 2 / squares if squares > 0 else 0.0


def overlap(weights: NDArray[np.floating]) -> Overlap:  # (N,)
    """Return the overlap statistics of importance weights."""
    if weights.ndim != 1 or len(weights) == 0 or not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError("weights must be (N,) finite numbers of at least 0, N at least 1")
    total = float(weights.sum())
    largest = float(weights.max()) / total if total > 0 else 1.0
    error = float(weights.std(ddof=1)) / np.sqrt(len(weights)) if len(weights) > 1 else np.inf
    return Overlap(effective_size(weights), largest, total / len(weights), float(error))


class Estimate(NamedTuple):
    """A mean reward per answer, with its interval."""

    value: float
    low: float
    high: float
    standard_error: float
    effective_size: float  # of the weights


def ips(
    rewards: NDArray[np.floating],  # (N,)
    weights: NDArray[np.floating],  # (N,) probability under the target over that under the logging policy
    *,
    users: NDArray[np.integer] | None = None,  # (N,) user of each answer, at least two; None: all different
    level: float = 0.95,
) -> Estimate:
    """Estimate the mean reward by inverse propensity scoring."""
    _check(rewards=rewards, weights=weights)
    return mean_of(weights * rewards, weights, users, level)


def snips(
    rewards: NDArray[np.floating],  # (N,)
    weights: NDArray[np.floating],  # (N,)
    *,
    users: NDArray[np.integer] | None = None,  # (N,)
    level: float = 0.95,
) -> Estimate:
    """Estimate the mean reward by self-normalised inverse propensities; see `ips`."""
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
    predicted: NDArray[np.floating],  # (N,) q(x_i, a_i), of the item shown, by a model not fitted on this answer
    expected: NDArray[np.floating],  # (N,) q(x_i, π) = Σ_a π(a | x_i) q(x_i, a)
    *,
    users: NDArray[np.integer] | None = None,  # (N,)
    level: float = 0.95,
) -> Estimate:
    """Estimate the mean reward by a model and its weighted errors; see `ips`."""
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


def cascade(
    rewards: NDArray[np.floating],  # (N, K), 0 at ranks beyond the end of a list
    target: NDArray[np.floating],  # (N, K)
    logged: NDArray[np.floating],  # (N, K)
    *,
    normalised: bool = True,
    users: NDArray[np.integer] | None = None,  # (N,) see `ips`
    level: float = 0.95,
) -> Estimate:
    """Estimate a list's mean sum of rewards; the effective size is the smallest of all ranks.

    Log-probabilities are of each item at its rank, given those above: under the target -inf where it never shows the
    item, under the served policy finite (`log_propensities` of the exposure log); 0 beyond the end of a list.
    """
    if rewards.ndim != 2 or target.shape != rewards.shape or logged.shape != rewards.shape or rewards.size == 0:
        raise ValueError(f"rewards, target and logged must be (N, K): {rewards.shape}, {target.shape}, {logged.shape}")
    if not (np.isfinite(rewards).all() and np.isfinite(logged).all()):
        raise ValueError("rewards or logged hold a value that is not finite")
    if np.isnan(target).any() or (target == np.inf).any():
        raise ValueError("target holds NaN or infinity")
    weights = np.exp((target - logged).cumsum(1))
    thinnest = weights[:, int(np.argmin([effective_size(column) for column in weights.T]))]
    if not normalised:
        return mean_of((weights * rewards).sum(1), thinnest, users, level)
    means = weights.mean(0)
    if (means <= 0).any():
        raise ValueError(f"the target never shows a list of the log down to rank {int(np.argmax(means <= 0)) + 1}")
    values = (weights * rewards).mean(0) / means  # (K,)
    linear = values.sum() + (weights * (rewards - values) / means).sum(1)
    return mean_of(linear, thinnest, users, level)


SMOOTHING = 20.0  # S, answers


class Drawn(NamedTuple):
    """A log of drawn lists, with their probabilities under another policy."""

    clicks: Floats  # (N, K), 0 beyond the end of a list
    target: Floats  # (N, K) log-probability of each item at its rank under the target, 0 beyond the end
    logged: Floats  # (N, K) the same under the served policy
    users: Ints  # (N,)
    first: Ints  # (N,) item at the first position
    drawn: Ints  # (N, R) items that the target draws, -1 where none
    drawn_weights: Floats  # (N, R), Σ weight f(item) has the mean of f over its first item


class Row(NamedTuple):
    """The estimate of one estimator, or why there is none."""

    of: str  # "first item" or "list"
    estimator: str
    estimate: Estimate | None  # None: refused
    overlap: Overlap | None  # None for what was served
    refused: str | None


def item_rates(items: Ints, clicks: Floats, size: int) -> Floats:
    """Return the shrunk click rate q(a) of each item, (V,)."""
    rate = float(clicks.mean()) if len(clicks) else 0.0
    return np.asarray(
        (np.bincount(items, weights=clicks, minlength=size) + SMOOTHING * rate)
        / (np.bincount(items, minlength=size) + SMOOTHING)
    )


def summarise(log: Drawn) -> list[Row]:
    """Estimate by every method on drawn lists of two users or more, and add what was served.

    The first item is weighted by its own probability ratio, a list by its own and by the cascade. The model of DR is
    each item's click rate q(a) = (clicks_a + S r) / (answers_a + S) at the first position among the other half of the
    users, with their overall rate r and S = 20. An estimator with too little overlap is refused.
    """
    weights = np.exp(log.target[:, 0] - log.logged[:, 0]), np.exp((log.target - log.logged).sum(1))
    one, whole = (overlap(each) for each in weights)
    first, total, users = log.clicks[:, 0], log.clicks.sum(1), log.users
    same = np.ones(len(first))
    predicted, expected = _model(log)
    seen_down = np.exp((log.target - log.logged).cumsum(1)).mean(0).all()  # the target shows lists of every length
    found = (
        ("first item", "as served", ips(first, same, users=users), None),
        ("first item", "IPS", ips(first, weights[0], users=users), one),
        ("first item", "SNIPS", snips(first, weights[0], users=users) if weights[0].any() else None, one),
        ("first item", "DR", doubly_robust(first, weights[0], predicted, expected, users=users), one),
        ("list", "as served", ips(total, same, users=users), None),
        ("list", "IPS", ips(total, weights[1], users=users), whole),
        ("list", "cascade", cascade(log.clicks, log.target, log.logged, users=users) if seen_down else None, whole),
    )
    refused = [None if seen is None else seen.problem for *_, seen in found]
    return [
        Row(of, name, None if problem else made, seen, problem)
        for (of, name, made, seen), problem in zip(found, refused, strict=True)
    ]


def _model(log: Drawn) -> tuple[Floats, Floats]:
    """(N,) predictions for the item shown and the target's; nobody contributes to their own model."""
    size = int(max(log.first.max(), log.drawn.max())) + 1
    half = np.unique(log.users, return_inverse=True)[1] % 2
    predicted, expected = np.zeros(len(half)), np.zeros(len(half))
    for part in (0, 1):
        mine, other = half == part, half != part
        rates = item_rates(log.first[other], log.clicks[other, 0], size)
        predicted[mine] = rates[log.first[mine]]
        expected[mine] = (log.drawn_weights[mine] * np.where(log.drawn[mine] >= 0, rates[log.drawn[mine]], 0.0)).sum(1)
    return predicted, expected
