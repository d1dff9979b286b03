"""Intervals that hold at all looks at once: the asymptotic confidence sequence of a mean.

    C_t = mean_t ± SE_t sqrt(2 (t ρ² + 1) / (t ρ²) log(sqrt(t ρ² + 1) / α))
    ρ²  = (-2 log α + log(-2 log α + 1)) / t*                                   tightest near t = t*

Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, "Time-uniform central limit theory and asymptotic confidence sequences",
arXiv 2103.06476. Theirs is of independent observations that come one by one. Ours are users, whose
numbers grow with each visit, so t is the count of answers and SE_t that of the users as they are at the look. Visits
of one user that go together make the estimates of two looks more alike than those of independent ones, and the
sequence wider than it had to be.
"""

from __future__ import annotations

import math


def anytime_factor(seen: float, tightest: float, alpha: float) -> float:
    """Return the half-width of the interval in standard errors.

    Args:
        seen: t, answers until now, above 0.
        tightest: t*, answers at which the interval is to be tightest; chosen before the first one.
        alpha: share of experiments in which any of the intervals misses.

    Example:
        At the time it was made for it is wider than the 1.96 of a single look.

        >>> round(anytime_factor(1000, 1000, 0.05), 3)
        3.035
    """
    rho = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / tightest
    moved = seen * rho
    return math.sqrt(2 * (moved + 1) / moved * math.log(math.sqrt(moved + 1) / alpha))
