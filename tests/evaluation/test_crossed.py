"""The interval over users and seeds: its parts against analysis of variance, its ends, its coverage by simulation."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from adagrpo.statistics import CrossedParts, crossed_interval, crossed_parts, holm

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.coverage import TARGET, coverage


def test_parts_are_the_mean_squares_of_a_crossed_table() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(3, 50)) + generator.normal(size=50) + generator.normal(size=(3, 1)) + 0.3
    seeds, users = values.shape
    rest = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
    by_seed = users * values.mean(1).var(ddof=1) / (seeds * users)
    by_user = seeds * values.mean(0).var(ddof=1) / (seeds * users)
    within = (rest**2).sum() / ((seeds - 1) * (users - 1)) / (seeds * users)
    assert crossed_parts(list(values)) == pytest.approx((values.mean(), by_seed, by_user, within, 2))


def test_users_that_differ_between_seeds_are_told_apart_by_a_slow_twin() -> None:
    generator = np.random.default_rng(1)
    places = [np.array([4, 0, 2, 1]), np.array([2, 3, 4])]
    values = [generator.normal(size=len(place)) for place in places]
    covariance = np.zeros((2, 2))
    for s, t in np.ndindex(2, 2):
        for i, j in np.ndindex(len(values[s]), len(values[t])):
            if places[s][i] == places[t][j]:
                product = (values[s][i] - values[s].mean()) * (values[t][j] - values[t].mean())
                sizes = len(values[s]), len(values[t])
                covariance[s, t] += product / np.sqrt(sizes[0] * (sizes[0] - 1) * sizes[1] * (sizes[1] - 1))
    actual = crossed_parts(values, places)
    assert actual.users == pytest.approx(covariance.sum() / 4)
    assert actual.rest == pytest.approx((np.trace(covariance) - covariance.sum() / 2) / 2)


def test_one_part_alone_has_its_own_interval() -> None:
    """Without seeds' spread the normal one, without users' Student's; in between, the critical value by hand."""
    users = crossed_interval(CrossedParts(1.0, 0.0, 0.25, 0.0, 2))
    assert (users.low, users.high) == pytest.approx((1 - 1.959964 * 0.5, 1 + 1.959964 * 0.5), rel=1e-6)
    assert users.p_value == pytest.approx(2 * stats.norm.sf(2), rel=1e-6)
    seeds = crossed_interval(CrossedParts(1.0, 0.25, 0.1, 0.1, 2))
    assert seeds.high - 1 == pytest.approx(4.302653 * 0.5, rel=1e-6)
    assert seeds.p_value == pytest.approx(2 * stats.t.sf(2, 2), rel=1e-6)
    half = crossed_interval(CrossedParts(1.0, 0.25, 0.25, 0.0, 2)).high - 1
    g = 0.5 - 0.9 * 0.25
    assert half == pytest.approx(np.sqrt(0.5 * ((1 - g) * 1.959964**2 + g * 4.302653**2)), rel=1e-6)


def test_the_end_is_zero_at_the_level_of_the_p_value() -> None:
    parts = CrossedParts(0.02, 2e-5, 6e-5, 3e-5, 4)
    p = crossed_interval(parts).p_value
    assert crossed_interval(parts, level=1 - p).low == pytest.approx(0, abs=1e-9)


def test_equal_arms_and_exact_gains() -> None:
    same = [np.zeros(5), np.zeros(5)]
    assert crossed_interval(crossed_parts(same)) == (0.0, 0.0, 0.0, 1.0)
    assert crossed_interval(crossed_parts([np.ones(5)] * 2)) == (1.0, 1.0, 1.0, 0.0)


@pytest.mark.parametrize(("seeds", "ratio"), [(3, 0.0), (3, 1.0), (5, 1.0), (3, 8.0)])
def test_coverage_by_simulation(seeds: int, ratio: float) -> None:
    """Short of what `benchmarks.coverage` runs: three standard errors of 600 repetitions are 2.7 points."""
    result = coverage("binary", seeds, 1000, ratio, repeats=600)
    assert TARGET[0] - 0.027 < result["crossed"]["coverage"] < TARGET[1] + 0.027
    if ratio >= 1:
        assert result["users"]["coverage"] < 0.92
    if ratio == 0:
        assert result["seeds"]["coverage"] < 0.93


@pytest.mark.parametrize(
    "values", [[np.ones(3)], [np.ones(1), np.ones(1)], [np.array([1.0, np.nan]), np.ones(2)], [np.ones((2, 2))] * 2]
)
def test_what_has_no_such_interval_is_refused(values: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="two seeds or more"):
        crossed_parts(values)


def test_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="same lengths"):
        crossed_parts([np.ones(3)] * 2, [np.arange(3), np.arange(2)])
    with pytest.raises(ValueError, match="level"):
        crossed_interval(CrossedParts(0.0, 1.0, 1.0, 0.0, 2), level=1.0)


def test_seeds_that_agree_exactly_by_chance_leave_the_interval_over_users() -> None:
    """Two hits are gained under each of two seeds, by other users: nothing is proved."""
    one, other = np.zeros(200), np.zeros(200)
    one[:2], other[2:4] = 1, 1
    interval = crossed_interval(crossed_parts([one, other]))
    error = np.sqrt(np.var((one + other) / 2, ddof=1) / 200)
    assert (interval.low, interval.high) == pytest.approx((0.01 - 1.959964 * error, 0.01 + 1.959964 * error), rel=1e-6)
    assert interval.p_value == pytest.approx(2 * stats.norm.sf(0.01 / error), rel=1e-6)


@pytest.mark.parametrize("seeds", [2, 3])
def test_a_family_of_equal_arms_with_few_hits_moved_claims_something_seldom(seeds: int) -> None:
    generator, users, claimed = np.random.default_rng(0), 300, 0
    for _ in range(100):
        p_values = []
        for _ in range(10):
            base = generator.random((seeds, users)) < 0.1
            one, other = (
                np.where(generator.random(base.shape) < 0.03, generator.random(base.shape) < 0.1, base)
                for _ in range(2)
            )
            p_values.append(crossed_interval(crossed_parts(list(one.astype(float) - other))).p_value)
        claimed += min(holm(p_values)) <= 0.05
    assert claimed <= 5  # it was 65 and 17 of a hundred when seeds that agree had an interval of no width
