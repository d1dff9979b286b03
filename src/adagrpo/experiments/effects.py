"""Effects over users, by tea-tasting: means, ratios by the delta method, CUPED.

    ratio    var(x̄ / ȳ) = (s²_x - 2 r s_xy + r² s²_y) / (n ȳ²), r = x̄ / ȳ          Deng, Knoblich & Lu, KDD 2018
    CUPED    x - θ (c - c̄), θ = s_xc / s²_c over both arms                          Deng et al., WSDM 2013
    interval union of log(b / a) ± z σ and (b - a) / a ± z σ', above -1
    p        the larger of the two

If the difference is skewed, p is that of a permutation test (`validity`), and the interval holds each R - 1 for
which b - R a is within the permutation quantiles of 0 (Fieller, 1954).

An arm whose users are all alike gets the pooled variance; p and interval then cover both tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tea_tasting as tt
from scipy import stats
from tea_tasting.aggr import Aggregates

from adagrpo.experiments.validity import Permutation, permutation, skew
from adagrpo.types import Floats

# largest skewness for the normal approximation: a tail of 2.5 % is then off by a quarter of a percent,
# which is γ (2 z² + 1) φ(z) / 6, the first term of Edgeworth's expansion
MOST_SKEW = 0.03
ROUNDING = 1e-7  # relative; smaller errors count as no variance


class Effect(NamedTuple):
    """A treatment against the control; shares of the control's number."""

    control: float
    treatment: float
    relative: float
    error: float  # standard error of log(1 + relative)
    difference_error: float  # standard error of the difference, as a share of the control's number
    p_value: float  # two-sided, of one look
    control_error: float  # standard error of the control's number by its own users, as a share of it
    treatment_error: float  # of the treatment's, as a share of the control's
    alike: bool  # all users of one arm have the same number
    chance: Permutation | None  # if the difference is skewed or an arm is alike

    def within(self, factor: float) -> tuple[float, float]:
        """Return the relative interval of `factor` standard errors to each side."""
        if self.chance is not None:
            ends = self._ratios(*self.chance.reach(factor))
            if not self.alike:
                return ends
            normal = self._replace(chance=None).within(factor)
            return min(ends[0], normal[0]), max(ends[1], normal[1])
        log, reach = math.log1p(self.relative), factor * self.difference_error
        low, high = (math.expm1(log + sign * factor * self.error) for sign in (-1, 1))
        return min(low, max(self.relative - reach, -1.0)), max(high, self.relative + reach)

    def _ratios(self, above: float, below: float) -> tuple[float, float]:
        ratio, control, treatment = 1 + self.relative, self.control_error**2, self.treatment_error**2

        def end(errors: float) -> float:
            squares = ratio**2 - errors**2 * treatment
            return squares / (ratio + errors * math.sqrt(max(treatment + control * squares, 0.0)))

        low = end(above) if ratio > above * math.sqrt(treatment) else 0.0  # else the treatment may be 0
        if below**2 * control < 1:
            return low - 1, end(-below) - 1
        # the control may be 0: R has no upper limit but those of log and difference
        return low - 1, max(math.expm1(math.log(ratio) + below * self.error), ratio - 1 + below * self.difference_error)

    def fixed(self, alpha: float) -> tuple[float, float]:
        """Return the interval of a single look."""
        return self.within(float(stats.norm.isf(alpha / 2)))

    def detectable(self, factor: float, power: float) -> float:
        """Return the smallest relative gain that is detected with this power."""
        return math.expm1((factor + float(stats.norm.ppf(power))) * self.error)


def aggregates(columns: Mapping[str, Floats]) -> Aggregates:
    """Collect an arm's aggregates from columns (N,), one number per user."""
    names = sorted(columns)
    values = np.stack([columns[name] for name in names])
    covariance = np.atleast_2d(np.cov(values))
    pairs = [(i, j) for i in range(len(names)) for j in range(i + 1, len(names))]
    return Aggregates(
        count_=values.shape[1],
        mean_={name: float(mean) for name, mean in zip(names, values.mean(axis=1), strict=True)},
        var_={name: float(covariance[i, i]) for i, name in enumerate(names)},
        cov_={(names[i], names[j]): float(covariance[i, j]) for i, j in pairs},
    )


def effect(control: Mapping[str, Floats], treatment: Mapping[str, Floats]) -> Effect | None:
    """Estimate the effect on `sum`, or `sum` over `per`, adjusted for `before`, from (N,) numbers of users.

    None if undefined: fewer than two users, no variance, a zero, or overflow.
    """
    if min(len(control["sum"]), len(treatment["sum"])) < 2:
        return None
    if not all(arm[name].any() for arm in (control, treatment) for name in ("sum", "per") if name in arm):
        return None
    pooled = {name: np.concatenate([control[name], treatment[name]]) for name in control}
    explains = "before" in control and bool(np.ptp(pooled["before"]))
    metric = tt.RatioOfMeans("sum", "per" if "per" in control else None, "before" if explains else None, use_t=False)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # no variance, or overflow
        alike = []  # whether all users of an arm have the same number
        for arm in (control, treatment):
            per = arm.get("per", np.ones(len(arm["sum"])))
            value = arm["sum"].mean() / per.mean()
            alike.append(bool((arm["sum"] - value * per).std() <= ROUNDING * abs(value) * per.mean()))
        if all(alike):
            return None
        arms = [aggregates(arm) for arm in (control, treatment)]
        if any(alike):
            both = aggregates(pooled)
            arms = [
                Aggregates(arm.count_, arm.mean_, both.var_, both.cov_) if same else arm
                for arm, same in zip(arms, alike, strict=True)
            ]
        try:
            found = metric.analyze_aggregates(*arms)
        except ValueError:  # a variance rounded to below 0
            return None
    z = float(stats.norm.ppf((1 + metric.confidence_level) / 2))
    if not (found.control > 0 and found.treatment > 0 and -1 < found.rel_effect_size_ci_upper < math.inf):
        return None
    relative = float(found.rel_effect_size)
    difference_error = (found.effect_size_ci_upper - found.effect_size) / z / found.control
    error = (math.log1p(found.rel_effect_size_ci_upper) - math.log1p(relative)) / z
    if not (error > ROUNDING and ROUNDING < difference_error < math.inf):
        return None
    errors = min(abs(math.log1p(relative)) / error, abs(relative) / difference_error)
    users = pooled["sum"]  # linearised: numbers of users whose means vary as the metric does
    if "per" in pooled:
        below = pooled["per"].mean()
        users = (users - users.mean() / below * pooled["per"]) / below
    if explains:
        moved = np.cov(users, pooled["before"])
        users = users - moved[0, 1] / moved[1, 1] * pooled["before"]
    numbers = users[: len(control["sum"])], users[len(control["sum"]) :]
    errors_of = [float(arm.std(ddof=1)) / math.sqrt(len(arm)) / float(found.control) for arm in numbers]
    p_value = 2 * float(stats.norm.sf(errors))
    chance = permutation(*numbers) if any(alike) or abs(skew(*numbers)) > MOST_SKEW else None
    if chance is not None:
        own_error = math.hypot(*errors_of)
        by_chance = chance.p_value(relative / own_error)
        p_value = max(p_value, by_chance) if any(alike) else by_chance
        difference_error = difference_error if any(alike) else own_error
    return Effect(
        control=float(found.control),
        treatment=float(found.treatment),
        relative=relative,
        error=float(error),
        difference_error=float(difference_error),
        p_value=p_value,
        control_error=errors_of[0],
        treatment_error=errors_of[1],
        alike=any(alike),
        chance=chance,
    )
