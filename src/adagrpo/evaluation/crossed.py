r"""One interval for other users and other seeds together: a mean over users that all meet the same seeds.

A difference of user `u` under seed `s` is taken as  d_su = μ + a_s + b_u + e_su:  what a seed does to everybody, what a
user brings under every seed, and the rest. The population effect is μ. With the means D_s of the S seeds and D of all,

    seeds    X = s²(D_s) / S                       estimates  σ_a²/S + σ_e²/(SU),  on ν = S - 1 degrees of freedom
    users    R, the variance of D over users       estimates  σ_b²/U + σ_e²/(SU)
    rest     E, what X would be were all a_s 0     estimates  σ_e²/(SU)
    V = X + A,  A = max(0, R - E),  w = X / V      what the seeds measured badly, and what thousands of users measured
    D ± √(V c²),  c² = (1 - g) z² + g t_ν²,  g = w - .9 w (1 - w)

Sources: the sum of the two variances and its degrees of freedom are those of Satterthwaite (1946); the square of the
critical value as a mean of the two parts' squares is Cochran's (1964). We depart from both: with three seeds
Satterthwaite covers 92.2 % where neither part dominates and Cochran 97.7 %. A weight `g` of w - k w (1 - w) lies
between the two, and k = .9 covers 94.4-95.9 % at three seeds and 94.8-95.4 % at five; `benchmarks.coverage` has the
simulation.

Users need not be the same under every seed. R and E are made of the users' covariances of the D_s, which are 0 for two
seeds without a user in common. The interval may be narrower than that over users alone, when the seeds agree better
than chance lets them: it claims 95 % over many repetitions, not more than its neighbour each time. Where few hits move,
seeds may agree exactly, and X is 0; that is no proof of an effect, and the interval is then the one over users alone.
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
    """A mean over seeds and users, and the parts of its variance as the module's docstring names them."""

    mean: float
    seeds: float  # X
    users: float  # R
    rest: float  # E
    degrees: int  # ν


def crossed_parts(
    values: Sequence[NDArray[np.floating]],  # S arrays of (n_s,)
    places: Sequence[NDArray[np.integer]] | None = None,  # S arrays of (n_s,)
) -> CrossedParts:
    """The mean of the seeds' means and the parts of its variance.

    Args:
        values: a number of each user, one array a seed; at least two seeds, and two users in each.
        places: which user each number is of, an index from 0 that is the same under every seed and occurs once in
            each; None says that the arrays hold the same users in the same order.

    Raises:
        ValueError: fewer than two seeds or two users, a number that is not finite, or arrays that do not fit.

    Example:
        >>> parts = crossed_parts([np.array([1.0, 3.0]), np.array([2.0, 2.0])])
        >>> parts.mean, parts.seeds, round(parts.users, 6)
        (2.0, 0.0, 0.25)
    """
    count = len(values)
    if count < 2 or any(np.ndim(row) != 1 or len(row) < 2 or not np.isfinite(row).all() for row in values):
        raise ValueError("values: expected two seeds or more, each with the finite numbers of two users or more")
    if places is None:
        places = [np.arange(len(row)) for row in values]
    if len(places) != count or any(np.shape(a) != np.shape(b) for a, b in zip(values, places, strict=True)):
        raise ValueError("values, places: expected arrays of the same lengths, one a seed")
    means = np.array([float(np.mean(row)) for row in values])
    centred = np.zeros((count, 1 + max(int(place.max()) for place in places)))
    for line, row, place, mean in zip(centred, values, places, means, strict=True):
        line[place] = (row - mean) / np.sqrt(len(row) * (len(row) - 1.0))
    covariance = centred @ centred.T  # (S, S) of the D_s, over users
    users = float(covariance.sum()) / count**2
    rest = (float(np.trace(covariance)) - float(covariance.sum()) / count) / (count * (count - 1))
    return CrossedParts(float(means.mean()), float(means.var(ddof=1)) / count, users, rest, count - 1)


def crossed_interval(parts: CrossedParts, *, level: float = 0.95) -> Interval:
    """The interval for other users and other seeds, and the p-value at which its end would be zero.

    Where no user differs from another the interval is the mean, and p is 1 for a mean of 0 and else 0.

    Raises:
        ValueError: `level` out of range.

    Example:
        >>> interval = crossed_interval(CrossedParts(0.02, seeds=0.0, users=1e-4, rest=0.0, degrees=2))
        >>> round(interval.low, 4), round(interval.high, 4), round(interval.p_value, 3)
        (0.0004, 0.0396, 0.046)
    """
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
    """c² of both tails together."""
    normal, student = special.ndtri(tail / 2), special.stdtrit(degrees, tail / 2)
    return float((1 - weight) * normal**2 + weight * student**2)


def _tail(square: float, weight: float, degrees: int) -> float:
    """The tails at which c² is `square`, by halving the interval of their logarithm."""
    low, high = float(np.log(1e-100)), 0.0
    for _ in range(60):
        middle = (low + high) / 2
        if _critical(float(np.exp(middle)), weight, degrees) > square:
            low = middle
        else:
            high = middle
    return float(np.exp(high))
