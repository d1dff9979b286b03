"""Sample size: users, and days, needed to detect an expected effect.

    N = (z + z_power)² (s / x̄)² (1/p_c + 1/p_t) / log(1 + effect)²

`p` are the shares of the arms, `z` that of one of m tests at α / m, or `anytime_factor` with daily looks: of an
asymptotic confidence sequence, whose intervals are valid at all looks at once,

    C_t = mean_t ± SE_t sqrt(2 (t ρ² + 1) / (t ρ²) log(sqrt(t ρ² + 1) / α))
    ρ²  = (-2 log α + log(-2 log α + 1)) / t*                                   tightest near t = t*

Waudby-Smith et al., arXiv 2103.06476, for independent observations. Here t counts answers and SE_t is over users;
repeated visits make the sequence conservative.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import stats

from adagrpo.errors import UserError
from adagrpo.experiments.plan import Plan
from adagrpo.experiments.units import Earlier, column_of


def anytime_factor(seen: float, tightest: float, alpha: float) -> float:
    """Return the interval's half-width in standard errors, after `seen` answers, tightest at `tightest`.

    `alpha` is the share of experiments in which any interval misses.
    """
    rho = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / tightest
    moved = seen * rho
    return math.sqrt(2 * (moved + 1) / moved * math.log(math.sqrt(moved + 1) / alpha))


def tests_of(plan: Plan) -> int:
    """Count the tested effects: each metric for each treatment."""
    return len(plan.metrics) * len(plan.treatments)


def users_needed(variation: float, effect: float, shares: tuple[float, float], z: float) -> int:
    """Return the users of the experiment, of whom control and treatment have shares.

    `variation` is deviation over mean, `effect` relative, `z` of test and power, summed.
    """
    return math.ceil((z * variation / math.log1p(effect)) ** 2 * (1 / shares[0] + 1 / shares[1]))


def duration(plan: Plan) -> list[dict[str, Any]]:
    """Return users and days by metric with an expected effect; `UserError` without a mean or deviation."""
    if not any(metric.expected for metric in plan.metrics.values()):
        raise UserError("metrics: none has `expected`; say which relative effect the experiment is made for")
    total = sum(arm.weight for arm in plan.arms.values())
    shares = {name: (1 - plan.holdout) * arm.weight / total for name, arm in plan.arms.items()}
    smallest = min(shares[name] for name in plan.treatments)
    alpha = plan.alpha / tests_of(plan)
    one = anytime_factor(1.0, 1.0, alpha) if plan.looks == "daily" else float(stats.norm.isf(alpha / 2))
    rows = []
    for name, metric in plan.metrics.items():
        if metric.expected is None:
            continue
        if metric.mean is None or metric.deviation is None:
            raise UserError(f"metrics.{name}: give mean and deviation, or --exposures with days before the start")
        z = one + float(stats.norm.ppf(plan.power))
        effect = metric.expected if metric.better == "up" else -metric.expected
        variation = metric.deviation / metric.mean
        users = users_needed(variation, effect, (shares[plan.control], smallest), z)
        days = None if plan.users_a_day is None else math.ceil(users / plan.users_a_day)
        rows.append({"metric": name, "expected": metric.expected, "variation": variation, "users": users, "days": days})
    return rows


def baselines(plan: Plan, earlier: Earlier) -> Plan:
    """Fill in missing means, deviations and users a day; `UserError` for fewer than two users, or nothing to sum."""
    users = earlier.users
    if len(users) < 2:
        raise UserError("the log has fewer than two users in the days before the start; give mean and deviation")
    metrics = dict(plan.metrics)
    for name, metric in plan.metrics.items():
        if metric.expected is None or (metric.mean is not None and metric.deviation is not None):
            continue
        over = users[column_of(metric.sum)].to_numpy()
        below = np.ones(len(users)) if metric.per is None else users[column_of(metric.per)].to_numpy()
        if not over.mean() or not below.mean():
            raise UserError(f"metrics.{name}: the days before the start have none of it; give mean and deviation")
        ratio = float(over.mean() / below.mean())
        deviation = float(np.std(over - ratio * below, ddof=1) / below.mean())  # of the delta method
        metrics[name] = metric.model_copy(update={"mean": ratio, "deviation": deviation})
    met = len(users) / (1 - plan.holdout)  # `users` excludes held-out users, as the arms' shares do
    a_day = plan.users_a_day or met / earlier.days
    return plan.model_copy(update={"metrics": metrics, "users_a_day": a_day})
