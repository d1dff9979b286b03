"""Permutation test: how far chance alone moves an effect, from dealing the users of two arms again and again.

    T     (mean of treatment - mean of control) / its standard error, of users dealt anew to arms of the same sizes
    p     twice the share of T, with the T that was seen, that lie as far to its side
    skew  m3 (1/n_t² - 1/n_c²) / (s² (1/n_t + 1/n_c))^(3/2): of the difference, 0 where the arms are equal in size

The test is exact where the arms do not differ, and valid for the mean where they do, since T is divided by its own
error (Chung & Romano, Annals of Statistics 2013). It costs draws, so it is for differences that are skewed: where arms
are unequal in size and a few users have most of a number, the normal distribution errs several times too often.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

DRAWS = 1999
PARTS = 20_000  # of more users than that as many parts are dealt, drawn beforehand
COUNTED = 10  # draws beyond which a tail is counted; further out it has the shape of the normal one
EQUAL = 1e-6  # share of T within which two are one but for rounding, where all users of an arm are the same


class Permutation(NamedTuple):
    """The errors that a difference lies from 0 by chance."""

    errors: Floats  # (draws,) T, ascending

    def reach(self, factor: float) -> tuple[float, float]:
        """Errors to take from a difference and to add to it, where a normal one would have so many on either side."""
        tail = float(stats.norm.sf(factor))
        return _quantile(self.errors[::-1], tail), _quantile(-self.errors, tail)

    def p_value(self, errors: float) -> float:
        """Two-sided, of a difference that lies so many of its errors from 0."""
        return min(1.0, 2 * (_tail(self.errors[::-1], errors) if errors > 0 else _tail(-self.errors, -errors)))


def skew(control: Floats, treatment: Floats) -> float:
    """The skewness of the difference of two means, of users taken to be alike.

    Args:
        control: (N,) one number a user, of which not all are the same.
        treatment: (M,).
    """
    users = np.concatenate([control, treatment])
    n_c, n_t = len(control), len(treatment)
    sizes: float = (n_t**-2 - n_c**-2) / (1 / n_t + 1 / n_c) ** 1.5
    return float(stats.skew(users)) * sizes


def counted_p_value(control: Floats, treatment: Floats, level: float) -> float:
    """Two-sided p-value of the difference of two means by counting draws alone, so exact where the arms do not differ.

    It is for levels so small that `Permutation.p_value` would extrapolate the tail. Where the normal distribution gives
    more than the level nothing is drawn.

    Args:
        control: (N,) one number a user.
        treatment: (M,).
        level: which a p-value has to be able to fall below; half of it is the smallest one.
    """
    users = np.concatenate([control, treatment])
    if min(len(control), len(treatment)) < 2 or np.ptp(users) <= EQUAL:
        return 1.0
    moments = [
        np.array([[len(arm), arm.sum(), (arm**2).sum()]])
        for arm in ((arm - users.mean()) / users.std() for arm in (control, treatment))
    ]
    (other, rest), (mean, variance) = map(_means, moments)
    errors = float((mean - other)[0] / np.sqrt(variance + rest)[0])
    p_value = 2 * float(stats.norm.sf(abs(errors)))
    if p_value >= level:
        return p_value
    drawn = permutation(control, treatment, draws=math.ceil(4 / level)).errors
    slack = EQUAL * max(abs(errors), 1.0)
    beyond = min(np.count_nonzero(drawn >= errors - slack), np.count_nonzero(drawn <= errors + slack))
    return min(1.0, 2 * (int(beyond) + 1) / (len(drawn) + 1))


def permutation(control: Floats, treatment: Floats, draws: int = DRAWS) -> Permutation:
    """Deal the users of two arms anew.

    Args:
        control: (N,) one number a user, of which not all are the same; two users or more.
        treatment: (M,), two or more.
        draws: of arms.
    """
    users = np.concatenate([control, treatment])
    generator = np.random.default_rng(0)
    users = generator.permutation((users - users.mean()) / users.std())
    starts = np.linspace(0, len(users), min(len(users), PARTS), endpoint=False).astype(int)
    parts = np.add.reduceat(np.stack([np.ones(len(users)), users, users**2], axis=1), starts)
    sign, small = (1.0, len(treatment)) if len(treatment) <= len(control) else (-1.0, len(control))
    size = max(round(len(parts) * small / len(users)), 2)
    drawn = (generator.choice(len(parts), size, replace=False, shuffle=False) for _ in range(draws))
    dealt = np.stack([parts[some].sum(axis=0) for some in drawn])
    (mean, variance), (others, rest) = _means(dealt), _means(parts.sum(axis=0) - dealt)
    return Permutation(np.sort(sign * (mean - others) / np.sqrt(variance + rest)))


def _means(sums: Floats) -> tuple[Floats, Floats]:
    """The means of arms, and the squares of their errors; not quite 0, where all users of an arm are the same.

    Args:
        sums: (draws, 3) users, their numbers and the squares of these.
    """
    users, total, squares = sums.T
    return total / users, np.maximum(squares - total**2 / users, 1e-12) / (users - 1) / users


def _tail(descending: Floats, errors: float) -> float:
    """The share of draws as far out; below what can be counted, that of a normal distribution as wide there."""
    beyond = int(np.count_nonzero(descending >= errors - EQUAL * max(errors, 1.0)))
    if beyond >= COUNTED:
        return (beyond + 1) / (DRAWS + 1)
    return min((COUNTED + 1) / (DRAWS + 1), float(stats.norm.sf(errors / _width(descending))))


def _quantile(descending: Floats, tail: float) -> float:
    """The errors, at least 0, beyond which `_tail` is at most `tail`."""
    allowed = math.floor(tail * (DRAWS + 1) + 1e-9) - 1
    if allowed >= COUNTED:
        return max(_past(float(descending[allowed])), 0.0)
    return max(_past(float(descending[COUNTED - 1])), _width(descending) * float(stats.norm.isf(tail)))


def _past(errors: float) -> float:
    """Compare with a threshold, up to rounding."""
    return errors + 2 * EQUAL * max(errors, 1.0)


def _width(descending: Floats) -> float:
    return max(1.0, float(descending[COUNTED - 1]) / float(stats.norm.isf((COUNTED + 1) / (DRAWS + 1))))
