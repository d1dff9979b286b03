"""Effects over users, by tea-tasting: means, ratios by the delta method, CUPED.

    ratio    var(x̄ / ȳ) = (s²_x - 2 r s_xy + r² s²_y) / (n ȳ²), r = x̄ / ȳ          Deng, Knoblich & Lu, KDD 2018
    CUPED    x - θ (c - c̄), θ = s_xc / s²_c over both arms                          Deng et al., WSDM 2013
    interval all that log(b / a) ± z σ and (b - a) / a ± z σ' hold, above -1
    p        the larger of the two: at most α where the interval at α leaves out 0, and there alone

Either alone errs too often somewhere: the difference where a small arm has few events, the logarithm where a few users
have most of the sum.

The normal distribution is used throughout: a sequence of looks has no other, and experiments have thousands of users.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tea_tasting as tt
from numpy.typing import NDArray
from scipy import stats
from tea_tasting.aggr import Aggregates

__all__ = ["Effect", "Floats", "aggregates", "effect"]

Floats = NDArray[np.float64]


class Effect(NamedTuple):
    """A treatment against the control; shares of the control's number."""

    control: float
    treatment: float
    relative: float
    error: float  # standard error of log(1 + relative)
    difference_error: float  # standard error of the difference, as a share of the control's number
    p_value: float  # two-sided, of one look

    def within(self, factor: float) -> tuple[float, float]:
        """The interval of so many standard errors to each side, relative."""
        log, reach = math.log1p(self.relative), factor * self.difference_error
        low, high = (math.expm1(log + sign * factor * self.error) for sign in (-1, 1))
        return min(low, max(self.relative - reach, -1.0)), max(high, self.relative + reach)

    def fixed(self, alpha: float) -> tuple[float, float]:
        """The interval of a single look."""
        return self.within(float(stats.norm.isf(alpha / 2)))

    def detectable(self, factor: float, power: float) -> float:
        """The smallest relative gain that so many users find with this power, by an interval of so many errors."""
        return math.expm1((factor + float(stats.norm.ppf(power))) * self.error)


def aggregates(columns: Mapping[str, Floats]) -> Aggregates:
    """What tea-tasting needs to know of one arm.

    Args:
        columns: (N,) by name, one number a user.
    """
    names = sorted(columns)
    values = np.stack([columns[name] for name in names])
    spread = np.atleast_2d(np.cov(values))
    pairs = [(i, j) for i in range(len(names)) for j in range(i + 1, len(names))]
    return Aggregates(
        count_=values.shape[1],
        mean_={name: float(mean) for name, mean in zip(names, values.mean(axis=1), strict=True)},
        var_={name: float(spread[i, i]) for i, name in enumerate(names)},
        cov_={(names[i], names[j]): float(spread[i, j]) for i, j in pairs},
    )


def effect(control: Mapping[str, Floats], treatment: Mapping[str, Floats]) -> Effect | None:
    """The effect of a treatment on `sum`, or on `sum` over `per`, less what `before` explains.

    Args:
        control: (N,) `sum`, and `per` or `before` where the metric has them, one number a user.
        treatment: the same.

    Returns:
        None where nothing can be said: fewer than two users, nothing that varies or to divide by, or numbers so large
        that their squares are none.
    """
    if min(len(control["sum"]), len(treatment["sum"])) < 2:
        return None
    if not all(arm[name].any() for arm in (control, treatment) for name in ("sum", "per") if name in arm):
        return None
    explains = "before" in control and bool(np.ptp(np.concatenate([control["before"], treatment["before"]])))
    metric = tt.RatioOfMeans("sum", "per" if "per" in control else None, "before" if explains else None, use_t=False)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # of numbers that do not vary, or are too large
        found = metric.analyze_aggregates(aggregates(control), aggregates(treatment))
    z = float(stats.norm.ppf((1 + metric.confidence_level) / 2))
    if not (found.control > 0 and found.treatment > 0 and -1 < found.rel_effect_size_ci_upper < math.inf):
        return None
    relative = float(found.rel_effect_size)
    difference_error = (found.effect_size_ci_upper - found.effect_size) / z / found.control
    error = (math.log1p(found.rel_effect_size_ci_upper) - math.log1p(relative)) / z
    if not (error > 0 and 0 < difference_error < math.inf):
        return None
    errors = min(abs(math.log1p(relative)) / error, abs(relative) / difference_error)
    return Effect(
        control=float(found.control),
        treatment=float(found.treatment),
        relative=relative,
        error=float(error),
        difference_error=float(difference_error),
        p_value=2 * float(stats.norm.sf(errors)),
    )
