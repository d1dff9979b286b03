"""Confidence intervals and tests for differences between policies; all deterministic.

    bootstrap   percentile bootstrap of the mean of N values (Efron 1979), also of paired differences
    normal      mean ± z_{1-α/2} s / √N
    all pairs   mean difference ± c s, c the quantile of max |t| over all pairs, Gaussian with their covariance
    seeds       mean ± t_{n-1, 1-α/2} s / √n over the n seeds of a run
    Holm        p_(i) ≤ α / (m - i + 1), step down; adjusted p-values are running maxima of (m - i + 1) p_(i) (1979)
    crossed     over users and seeds together, when all users meet the same seeds:

    d_su = μ + a_s + b_u + e_su    difference of user u under seed s; D_s are the means of the S seeds, D that of all
    seeds    X = s²(D_s) / S                       estimates  σ_a²/S + σ_e²/(SU),  on ν = S - 1 degrees of freedom
    users    R, the variance of D over users       estimates  σ_b²/U + σ_e²/(SU)
    rest     E, what X would be were all a_s 0     estimates  σ_e²/(SU)
    D ± √(V c²),  V = X + max(0, R - E),  w = X / V,  c² = (1 - g) z² + g t_ν²,  g = w - .9 w (1 - w)

All pairs are Tukey's comparisons with unequal covariances (Hothorn, Bretz and Westfall 2008). Crossed: Satterthwaite
(1946) for the sum of variances, Cochran (1964) for averaging squared critical values; our `g` lies between, for
coverage at few seeds (`benchmarks.coverage`). If all seeds agree exactly, the interval is over users alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

# resamples are drawn in blocks of about this many values
_BLOCK = 2**16


class Interval(NamedTuple):
    """An estimate, its confidence interval, and the two-sided p-value of zero."""

    mean: float
    low: float
    high: float
    p_value: float


def bootstrap_mean(
    values: NDArray[np.floating],  # (N,) one per user, N at least 1
    *,
    resamples: int = 2000,
    level: float = 0.95,  # in (0, 1)
    seed: int = 0,  # equal seeds resample equal users
) -> Interval:
    """Return a mean's percentile bootstrap interval.

    The p-value `2 min(P*(mean ≤ 0), P*(mean ≥ 0))` counts the observed sample, so it is at least `2 / (resamples + 1)`.
    """
    return bootstrap_means(values[None], resamples=resamples, level=level, seed=seed)[0]


def bootstrap_means(
    values: NDArray[np.floating],  # (A, N)
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> list[Interval]:
    """Return `bootstrap_mean` of each row, with shared resamples."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] == 0 or not np.isfinite(values).all():
        raise ValueError(f"values has shape {values.shape}: expected (A, N) finite numbers, N at least 1")
    if not 0 < level < 1:
        raise ValueError(f"level {level}: expected a number between 0 and 1")
    means = np.zeros((len(values), resamples))
    moving = values.any(axis=1)  # what is 0 for all users has the mean 0 in every resample
    if moving.any():
        count = values.shape[1]
        generator = np.random.default_rng(seed)
        block = max(1, _BLOCK // count)
        kept = np.ascontiguousarray(values[moving].T)  # (N, A')
        draws = np.empty((resamples, kept.shape[1]))
        for first in range(0, resamples, block):
            rows = min(block, resamples - first)
            drawn = generator.integers(0, count, (rows, count)) + count * np.arange(rows)[:, None]
            times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
            draws[first : first + rows] = times @ kept / count
        # a sum whose parts cancel is 0 but for rounding
        draws[np.abs(draws) < 1e-14 * np.abs(kept).max(axis=0)] = 0.0
        means[moving] = draws.T
    lows, highs = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=1)
    fewer = np.minimum((means <= 0).sum(axis=1), (means >= 0).sum(axis=1))
    p_values = np.minimum(1.0, 2 * (1 + fewer) / (resamples + 1))
    ends = zip(values.mean(axis=1), lows, highs, p_values, strict=True)
    return [Interval(*map(float, interval)) for interval in ends]


def mean_interval(
    values: NDArray[np.floating],  # (N,) one per user, N at least 1
    weights: NDArray[np.floating] | None = None,  # (N,) above 0: Σ w x / Σ w, linearised (Hájek); None: equal
    *,
    level: float = 0.95,
) -> Interval:
    """Return the normal interval of a mean by its standard error; if that is 0, the mean, with p 1.

    >>> mean, low, high, p = mean_interval(np.array([1.0, -1.0, 3.0, 1.0]))
    >>> round(mean, 3), round(low, 3), round(high, 3), round(p, 3)
    (1.0, -0.6, 2.6, 0.221)
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(f"values has shape {values.shape}: expected (N,) finite numbers, N at least 1")
    if not 0 < level < 1:
        raise ValueError(f"level {level}: expected a number between 0 and 1")
    share = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    if share.shape != values.shape or not (np.isfinite(share).all() and (share > 0).all()):
        raise ValueError(f"weights has shape {share.shape}: expected {values.shape} finite numbers above 0")
    share = share / share.mean()
    mean = float((share * values).mean())
    residuals = share * (values - mean)
    error = float(residuals.std(ddof=1)) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    if error == 0:
        return Interval(mean, mean, mean, 1.0)
    half = float(stats.norm.ppf((1 + level) / 2)) * error
    return Interval(mean, float(mean - half), float(mean + half), 2 * float(stats.norm.sf(abs(mean) / error)))


def all_pairs(
    values: Mapping[str, NDArray[np.floating]],  # (N,) each, the same users in the same order, N at least 2
    *,
    draws: int = 10_000,  # of max |t|; p-values are multiples of 1 / draws
) -> dict[tuple[str, str], Interval]:
    """Return simultaneous 95 % intervals of paired mean differences, by (one, other), first minus second.

    P-values are corrected for all pairs; max |t| is simulated with a fixed seed.
    """
    names = list(values)
    table = np.stack([np.asarray(values[name], dtype=np.float64) for name in names])  # (A, N)
    count = table.shape[1]
    if count < 2 or not np.isfinite(table).all():
        raise ValueError(f"values has shape {table.shape}: expected (A, N) finite numbers, N at least 2")
    means = table.mean(axis=1)
    centred = table - means[:, None]
    covariance = centred @ centred.T / (count - 1) / count
    variance = np.diag(covariance)
    error = np.sqrt(np.maximum(variance[:, None] + variance - 2 * covariance, 0.0))  # (A, A)
    error[error < 1e-9 * np.sqrt(variance.max(initial=0.0))] = 0.0  # equal but for rounding
    generator = np.random.default_rng(0)
    size, axes = np.linalg.eigh(covariance)
    drawn = generator.standard_normal((draws, len(names))) @ (axes * np.sqrt(np.maximum(size, 0.0))).T  # (D, A)
    drawn /= np.sqrt(generator.chisquare(count - 1, draws) / (count - 1))[:, None]
    largest = np.zeros(draws)
    for one in range(len(names)):
        with np.errstate(divide="ignore", invalid="ignore"):
            statistic = np.where(error[one] > 0, np.abs(drawn[:, [one]] - drawn) / error[one], 0.0)
        largest = np.maximum(largest, statistic.max(axis=1))
    quantile = float(np.quantile(largest, 0.95))
    found = {}
    for one, other in product(range(len(names)), repeat=2):
        mean, half = float(means[one] - means[other]), quantile * float(error[one, other])
        p_value = float((largest >= abs(mean) / error[one, other]).mean()) if error[one, other] > 0 else 1.0
        found[names[one], names[other]] = Interval(mean, mean - half, mean + half, p_value)
    return found


def paired_difference(
    arm: NDArray[np.floating],  # (N,)
    baseline: NDArray[np.floating],  # (N,)
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return the bootstrap interval of `mean(arm - baseline)` over N users in one order."""
    if np.shape(arm) != np.shape(baseline):
        raise ValueError(f"arm has shape {np.shape(arm)}, baseline {np.shape(baseline)}: expected the same users")
    difference = np.asarray(arm, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    return bootstrap_mean(difference, resamples=resamples, seed=seed)


def seed_interval(values: Sequence[float], *, level: float = 0.95) -> Interval:
    """Return the t-interval over seeds; for one seed its ends and p-value are NaN."""
    numbers = np.asarray(values, dtype=np.float64)
    if len(numbers) == 0:
        raise ValueError("values is empty: expected one number a seed")
    mean = float(numbers.mean())
    if len(numbers) == 1:
        return Interval(mean, float("nan"), float("nan"), float("nan"))
    error = float(numbers.std(ddof=1)) / np.sqrt(len(numbers))
    half = float(stats.t.ppf((1 + level) / 2, len(numbers) - 1)) * error
    p_value = 2 * float(stats.t.sf(abs(mean) / error, len(numbers) - 1)) if error > 0 else float(mean == 0)
    return Interval(mean, mean - half, mean + half, p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values in their order; reject where at most α."""
    values = np.asarray(p_values, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"p_values {list(p_values)}: expected numbers from 0 to 1")
    order = np.argsort(values, kind="stable")
    scaled = values[order] * (len(values) - np.arange(len(values)))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(scaled))
    return [float(p) for p in adjusted]


_TIED = 1e-12  # of the users' variance: seeds that differ by less differ by rounding
_BETWEEN = 0.9  # 0 is Cochran's critical value; the larger, the nearer to Satterthwaite's


class CrossedParts(NamedTuple):
    """A mean over seeds and users with the parts of its variance."""

    mean: float
    seeds: float  # X
    users: float  # R
    rest: float  # E
    degrees: int  # ν


def crossed_parts(
    values: Sequence[NDArray[np.floating]],  # S arrays of (n_s,)
    user_index: Sequence[NDArray[np.integer]] | None = None,  # S arrays of (n_s,)
) -> CrossedParts:
    """Return the mean of the seeds' means and its variance's parts, from at least two seeds with two users each.

    `user_index` of a value is the same under every seed; None: the same users in the same order.
    """
    count = len(values)
    if count < 2 or any(np.ndim(row) != 1 or len(row) < 2 or not np.isfinite(row).all() for row in values):
        raise ValueError("values: expected two seeds or more, each with the finite numbers of two users or more")
    if user_index is None:
        user_index = [np.arange(len(row)) for row in values]
    if len(user_index) != count or any(np.shape(a) != np.shape(b) for a, b in zip(values, user_index, strict=True)):
        raise ValueError("values, user_index: expected arrays of the same lengths, one a seed")
    means = np.array([float(np.mean(row)) for row in values])
    centred = np.zeros((count, 1 + max(int(index.max()) for index in user_index)))
    for line, row, index, mean in zip(centred, values, user_index, means, strict=True):
        line[index] = (row - mean) / np.sqrt(len(row) * (len(row) - 1.0))
    covariance = centred @ centred.T  # (S, S) of the D_s, over users
    users = float(covariance.sum()) / count**2
    rest = (float(np.trace(covariance)) - float(covariance.sum()) / count) / (count * (count - 1))
    return CrossedParts(float(means.mean()), float(means.var(ddof=1)) / count, users, rest, count - 1)


def crossed_interval(parts: CrossedParts, *, level: float = 0.95) -> Interval:
    """Return the interval for other users and seeds; without variance it is the mean, with p 1 for 0, else 0."""
    if not 0 < level < 1:
        raise ValueError(f"level {level}: expected a number between 0 and 1")
    variance = parts.seeds + max(0.0, parts.users - parts.rest)
    share = parts.seeds / variance if variance > 0 else 0.0
    if parts.seeds <= _TIED * parts.users:
        variance, share = parts.users, 0.0
    if variance <= 0:
        return Interval(parts.mean, parts.mean, parts.mean, float(parts.mean == 0))
    weight = share - _BETWEEN * share * (1 - share)
    half = np.sqrt(variance * _critical(1 - level, weight, parts.degrees))
    p_value = _tail(parts.mean**2 / variance, weight, parts.degrees)
    return Interval(parts.mean, float(parts.mean - half), float(parts.mean + half), p_value)


def _critical(tail: float, weight: float, degrees: int) -> float:
    normal, student = special.ndtri(tail / 2), special.stdtrit(degrees, tail / 2)
    return float((1 - weight) * normal**2 + weight * student**2)


def _tail(square: float, weight: float, degrees: int) -> float:
    low, high = float(np.log(1e-100)), 0.0
    for _ in range(60):
        middle = (low + high) / 2
        if _critical(float(np.exp(middle)), weight, degrees) > square:
            low = middle
        else:
            high = middle
    return float(np.exp(high))
