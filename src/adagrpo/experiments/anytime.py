"""Asymptotic confidence sequence of a mean: intervals valid at all looks at once.

    C_t = mean_t ± SE_t sqrt(2 (t ρ² + 1) / (t ρ²) log(sqrt(t ρ² + 1) / α))
    ρ²  = (-2 log α + log(-2 log α + 1)) / t*                                   tightest near t = t*

Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, arXiv 2103.06476, for independent observations. Here t counts answers and
SE_t is over users; repeated visits make the sequence conservative.
"""

from __future__ import annotations

import math


def anytime_factor(seen: float, tightest: float, alpha: float) -> float:
    """Return the half-width of the interval in standard errors.

    Args:
        seen: t, answers so far, above 0.
        tightest: t*, chosen in advance.
        alpha: share of experiments in which any interval misses.

    Example:
        >>> round(anytime_factor(1000, 1000, 0.05), 3)
        3.035
    """
    rho = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / tightest
    moved = seen * rho
    return math.sqrt(2 * (moved + 1) / moved * math.log(math.sqrt(moved + 1) / alpha))
