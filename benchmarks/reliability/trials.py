"""Experiments of which the truth is known: how often the analysis is wrong, alone and when it is looked at daily.

Users come over 20 days and come back; what they see a day is lognormal, so a few see most, and each has a click rate of
its own. The metric is clicks over impressions. In A/A experiments both arms are the same; elsewhere a lift is planted.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats

from adagrpo.experiments.allocation import assign
from adagrpo.experiments.duration import anytime_factor, users_needed
from adagrpo.experiments.effects import Effect, effect
from adagrpo.experiments.outcome import analyse
from adagrpo.experiments.plan import Plan
from adagrpo.experiments.units import Units, column_of
from benchmarks.reliability.findings import Finding

__all__ = ["Errors", "draw", "false_alarms", "imbalances", "planted", "trials", "unequal"]

LOOKS, ALPHA, POWER, LIFT = 20, 0.05, 0.8, 0.1
Ints = NDArray[np.int64]


class Drawn(NamedTuple):
    """Users of one arm: sums until each day."""

    impressions: Ints  # (LOOKS, N)
    clicks: Ints  # (LOOKS, N)
    answers: Ints  # (LOOKS, N)


class Errors(NamedTuple):
    """How many A/A experiments show an effect."""

    at_the_end: int
    at_any_look: int  # by the fixed interval, which is for one look
    at_any_look_anytime: int


def draw(generator: np.random.Generator, users: int, lift: float = 0.0) -> Drawn:
    """Draw one arm; `lift` is relative, of every click rate."""
    days = np.arange(LOOKS)[:, None]
    first = generator.integers(0, LOOKS, users)
    shown = (days == first) | ((days > first) & (generator.random((LOOKS, users)) < 0.2))
    seen = shown * (1 + generator.poisson(generator.lognormal(1.0, 1.0, users), (LOOKS, users)))
    clicks = generator.binomial(seen, (1 + lift) * generator.beta(2, 18, users).clip(max=1 / (1 + lift)))
    return Drawn(*(table.cumsum(axis=0) for table in (seen, clicks, shown)))


def until(control: Drawn, treatment: Drawn, look: int) -> Effect:
    """The effect as it is at one look, over the users that were seen."""
    arms = []
    for arm in (control, treatment):
        here = arm.answers[look] > 0
        arms.append({"sum": arm.clicks[look, here].astype(float), "per": arm.impressions[look, here].astype(float)})
    found = effect(*arms)
    assert found is not None
    return found


def false_alarms(experiments: int, users: int, seed: int = 0) -> Errors:
    """A/A experiments, looked at on each of the days."""
    counts = np.zeros(3, dtype=int)
    once = float(stats.norm.isf(ALPHA / 2))
    for number in range(experiments):
        generator = np.random.default_rng([seed, number])
        arms = draw(generator, users // 2), draw(generator, users // 2)
        expected = users * (1 + 0.2 * (LOOKS - 1) / 2)  # answers at the end, known from how users are drawn
        wrong, wrong_anytime = [], []
        for look in range(LOOKS):
            found = until(*arms, look)
            answers = sum(int(arm.answers[look].sum()) for arm in arms)
            wrong.append(not _holds(found, once, 0.0))
            wrong_anytime.append(not _holds(found, anytime_factor(answers, expected, ALPHA), 0.0))
        counts += [wrong[-1], any(wrong), any(wrong_anytime)]
    return Errors(*(int(count) for count in counts))


def planted(experiments: int, lift: float = LIFT, seed: int = 1) -> tuple[int, int, int]:
    """Experiments of the size that a lift takes: users of each, how many find it, how many intervals hold it."""
    large = draw(np.random.default_rng([seed, 0]), 200_000)
    impressions, clicks = large.impressions[-1], large.clicks[-1]
    ratio = clicks.mean() / impressions.mean()
    variation = float(np.std(clicks - ratio * impressions) / clicks.mean())
    once = float(stats.norm.isf(ALPHA / 2))
    users = users_needed(variation, lift, (0.5, 0.5), once + float(stats.norm.ppf(POWER)))
    found = covered = 0
    for number in range(1, experiments + 1):
        generator = np.random.default_rng([seed, number])
        here = until(draw(generator, users // 2), draw(generator, users // 2, lift), LOOKS - 1)
        found += here.relative > 0 and here.p_value <= ALPHA
        covered += _holds(here, once, lift)
    return users, found, covered


def unequal(experiments: int, users: tuple[int, int] = (3000, 300), seed: int = 3) -> int:
    """A/A experiments with a small arm, where a few users spend most of the sum: how many show an effect."""
    shown = 0
    for number in range(experiments):
        generator = np.random.default_rng([seed, number])
        arms = [np.where(generator.random(n) < 0.03, generator.lognormal(0, 2, n), 0.0) for n in users]
        found = effect(*({"sum": arm} for arm in arms))
        shown += found is not None and found.p_value <= ALPHA
    return shown


def imbalances(experiments: int, users: int = 10_000, lost: float = 0.1) -> tuple[int, int]:
    """Of experiments whose treatment loses a share of its users, how many are invalid; and of the same without loss."""
    generator = np.random.default_rng(2)
    counts = [0, 0]
    for number in range(experiments):
        plan = _plan(f"salt-{number}")
        arms = [assign(str(user), salt=plan.salt, weights={"a": 1, "b": 1}) for user in range(users)]
        days = [plan.start + timedelta(days=int(day)) for day in generator.integers(0, LOOKS, users)]
        table = pl.DataFrame({"arm": arms, "day": days, "catalogue": "1"}).with_columns(
            pl.Series(column_of("clicks"), generator.poisson(1.0, users), dtype=pl.Float64)
        )
        kept = table.filter((pl.col("arm") == "a") | pl.Series(generator.random(users) >= lost))
        for place, some in enumerate((kept, table)):
            units = Units(some, len(some), 0, 0, 0)
            result = analyse(plan, units, now=datetime(2027, 1, 1, tzinfo=UTC))
            counts[place] += result["verdicts"]["b"] == "invalid" and result["effects"] == []
    return counts[0], counts[1]


def trials(_work: Path, experiments: int = 1000) -> Finding:
    """Row 15, whole."""
    errors = false_alarms(experiments, users=2000)
    users, found, covered = planted(experiments)
    small = unequal(4 * experiments) / (4 * experiments)
    refused, alarms = imbalances(50)
    near = 1.96 * np.sqrt(ALPHA * (1 - ALPHA) / experiments)
    close = 1.96 * np.sqrt(POWER * (1 - POWER) / experiments)
    passes = (
        abs(errors.at_the_end / experiments - ALPHA) <= near
        and errors.at_any_look_anytime / experiments <= ALPHA
        and small <= ALPHA + near / 2
        and 0.936 <= covered / experiments <= 0.964
        and abs(found / experiments - POWER) <= close
        and (refused, alarms) == (50, 0)
    )
    figure = (
        f"{experiments:,} A/A experiments of 2,000 users, clicks over lognormal impressions: an effect is shown by "
        f"{errors.at_the_end / experiments:.1%} at the end, by {errors.at_any_look_anytime / experiments:.1%} at any "
        f"of {LOOKS} looks with intervals for it ({errors.at_any_look / experiments:.1%} with those for one look); "
        f"of {4 * experiments:,} with 3,000 and 300 users, of whom a few spend most of the sum, by {small:.1%}; "
        f"a planted lift of {LIFT:.0%} with the {users:,} users that {POWER:.0%} power takes: found in "
        f"{found / experiments:.1%}, intervals hold it in {covered / experiments:.1%}; a tenth of the users of one "
        f"arm lost: {refused} of 50 refused, without loss {alarms} of 50"
    )
    return Finding(15, figure, bool(passes))


def _holds(found: Effect, factor: float, truth: float) -> bool:
    low, high = found.within(factor)
    return low <= truth <= high


def _plan(salt: str) -> Plan:
    return Plan.model_validate(
        {
            "name": "planted",
            "arms": {"a": {"serves": "sft"}, "b": {"serves": "gated"}},
            "control": "a",
            "salt": salt,
            "start": date(2026, 11, 1),
            "days": LOOKS,
            "metrics": {"clicks": {"sum": "clicks"}},
        }
    )
