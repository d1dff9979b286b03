"""Confidence interval of a mean over users and seeds together, when all users meet the same seeds.

    d_su = μ + a_s + b_u + e_su    difference of user u under seed s; D_s are the means of the S seeds, D that of all
    seeds    X = s²(D_s) / S                       estimates  σ_a²/S + σ_e²/(SU),  on ν = S - 1 degrees of freedom
    users    R, the variance of D over users       estimates  σ_b²/U + σ_e²/(SU)
    rest     E, what X would be were all a_s 0     estimates  σ_e²/(SU)
    V = X + A,  A = max(0, R - E),  w = X / V
    D ± √(V c²),  c² = (1 - g) z² + g t_ν²,  g = w - .9 w (1 - w)

Sources: Satterthwaite (1946) for the sum of variances, Cochran (1964) for averaging squared critical values; our `g`
lies between, for coverage at few seeds (`benchmarks.coverage`). Users may differ between seeds. If all seeds agree
exactly, the interval is over users alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from adagrpo.evaluation.statistics import Interval

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
    """Return the mean of the seeds' means and the parts of its variance.

    Args:
        values: one array per seed; at least two seeds with two users each.
        user_index: of each value, the same under every seed; None: the same users in the same order.
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
    """Return the interval for other users and seeds; without variance it is the mean, and p is 1 for 0, else 0."""
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
