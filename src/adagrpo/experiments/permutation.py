"""Permutation test of an effect, for skewed differences, where the normal distribution errs.

    T     (mean of treatment - mean of control) / its standard error
    p     twice the share of T, the observed one included, at least as extreme on its side
    skew  m3 (1/n_t² - 1/n_c²) / (s² (1/n_t + 1/n_c))^(3/2): of the difference, 0 where the arms are equal in size

Asymptotically valid for means also under unequal distributions, since T is studentised (Chung & Romano, Annals of
Statistics 2013).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

DRAWS = 1999
PARTS = 20_000  # more users are first grouped into as many random parts, which are permuted
COUNTED = 10  # fewest draws in a counted tail; further out it is normal
EQUAL = 1e-6  # relative tolerance for ties of T


class Permutation(NamedTuple):
    """Null distribution of the studentised difference."""

    errors: Floats  # (draws,) T, ascending

    def reach(self, factor: float) -> tuple[float, float]:
        """Return the errors to subtract and to add, in place of `factor` normal ones."""
        tail = float(stats.norm.sf(factor))
        return _quantile(self.errors[::-1], tail), _quantile(-self.errors, tail)

    def p_value(self, errors: float) -> float:
        """Return the two-sided p-value of so many standard errors."""
        return min(1.0, 2 * (_tail(self.errors[::-1], errors) if errors > 0 else _tail(-self.errors, -errors)))


def skew(control: Floats, treatment: Floats) -> float:
    """Return the skewness of the difference of the means of (N,) and (M,) numbers under equal distributions."""
    users = np.concatenate([control, treatment])
    n_c, n_t = len(control), len(treatment)
    sizes: float = (n_t**-2 - n_c**-2) / (1 / n_t + 1 / n_c) ** 1.5
    return float(stats.skew(users)) * sizes


def counted_p_value(control: Floats, treatment: Floats, level: float) -> float:
    """Return the two-sided p-value of (N,) and (M,) numbers by counting draws.

    For levels too small for `Permutation.p_value`; a normal p-value above `level` is returned as is.
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
    """Draw the permutation distribution of T of (N,) and (M,) numbers, not all the same, N and M at least 2."""
    users = np.concatenate([control, treatment])
    generator = np.random.default_rng(0)
    users = generator.permutation((users - users.mean()) / users.std())
    starts = np.linspace(0, len(users), min(len(users), PARTS), endpoint=False).astype(int)
    parts = np.add.reduceat(np.stack([np.ones(len(users)), users, users**2], axis=1), starts)
    sign, small = (1.0, len(treatment)) if len(treatment) <= len(control) else (-1.0, len(control))
    size = max(round(len(parts) * small / len(users)), 2)
    drawn = (generator.choice(len(parts), size, replace=False, shuffle=False) for _ in range(draws))
    sums = np.stack([parts[some].sum(axis=0) for some in drawn])
    (mean, variance), (others, rest) = _means(sums), _means(parts.sum(axis=0) - sums)
    return Permutation(np.sort(sign * (mean - others) / np.sqrt(variance + rest)))


def _means(sums: Floats) -> tuple[Floats, Floats]:
    """Return means and squared errors of sums (draws, 3): users, numbers, squares."""
    users, total, squares = sums.T
    return total / users, np.maximum(squares - total**2 / users, 1e-12) / (users - 1) / users


def _tail(descending: Floats, errors: float) -> float:
    beyond = int(np.count_nonzero(descending >= errors - EQUAL * max(errors, 1.0)))
    if beyond >= COUNTED:
        return (beyond + 1) / (DRAWS + 1)
    return min((COUNTED + 1) / (DRAWS + 1), float(stats.norm.sf(errors / _width(descending))))


def _quantile(descending: Floats, tail: float) -> float:
    allowed = math.floor(tail * (DRAWS + 1) + 1e-9) - 1
    if allowed >= COUNTED:
        return max(_past(float(descending[allowed])), 0.0)
    return max(_past(float(descending[COUNTED - 1])), _width(descending) * float(stats.norm.isf(tail)))


def _past(errors: float) -> float:
    return errors + 2 * EQUAL * max(errors, 1.0)


def _width(descending: Floats) -> float:
    return max(1.0, float(descending[COUNTED - 1]) / float(stats.norm.isf((COUNTED + 1) / (DRAWS + 1))))
