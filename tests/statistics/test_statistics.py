"""Intervals and tests on data whose answer is known: by hand, by SciPy, and by simulation under the null."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from adagrpo.statistics import (
    bootstrap_mean,
    bootstrap_means,
    holm,
    paired_difference,
    seed_interval,
)


def test_bootstrap_agrees_with_the_normal_interval_of_many_users() -> None:
    values = np.random.default_rng(0).normal(0.3, 1.0, 4000)
    actual = bootstrap_mean(values, resamples=4000)
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    assert actual.mean == pytest.approx(values.mean(), rel=1e-12)
    # the percentiles of 4,000 resamples are uncertain by about 3 % of the half-width
    assert actual.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert actual.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_coverage_and_size_under_the_null() -> None:
    generator = np.random.default_rng(1)
    covered = rejected = 0
    trials = 400
    for trial in range(trials):
        hits = (generator.random(500) < 0.1).astype(float) - (generator.random(500) < 0.1)
        actual = bootstrap_mean(hits, resamples=400, seed=trial)
        covered += actual.low <= 0 <= actual.high
        rejected += actual.p_value <= 0.05
    # three standard errors of a share of 0.95 in 400 trials are 0.033
    assert covered / trials == pytest.approx(0.95, abs=0.033)
    assert rejected / trials <= 0.05 + 0.033


def test_power_on_a_planted_effect() -> None:
    generator = np.random.default_rng(2)
    baseline = (generator.random(5000) < 0.10).astype(float)
    gained = np.maximum(baseline, (generator.random(5000) < 0.02).astype(float))
    actual = paired_difference(gained, baseline)
    assert actual.low > 0
    assert actual.low > 0 or actual.high < 0
    assert actual.p_value < 0.01
    assert actual.mean == pytest.approx(gained.mean() - baseline.mean(), rel=1e-12)


def test_pairing_is_what_makes_a_small_difference_visible() -> None:
    baseline = np.random.default_rng(3).normal(0, 10, 1000)
    actual = paired_difference(baseline + 0.5, baseline)
    assert (actual.low, actual.high) == (pytest.approx(0.5), pytest.approx(0.5))


def test_equal_arms_differ_by_nothing() -> None:
    same = np.ones(5)
    assert paired_difference(same, same) == (0.0, 0.0, 0.0, 1.0)


def test_the_p_value_is_never_zero() -> None:
    assert bootstrap_mean(np.ones(50), resamples=99).p_value == pytest.approx(2 / 100)


def test_blocks_do_not_change_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(7.0)
    whole = bootstrap_mean(values, resamples=50)
    monkeypatch.setattr("adagrpo.statistics._BLOCK", 21)
    assert bootstrap_mean(values, resamples=50) == whole


def test_seed_interval_is_student_t() -> None:
    values = [0.061, 0.064, 0.063]
    actual = seed_interval(values)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (actual.low, actual.high) == (pytest.approx(low), pytest.approx(high))
    assert actual.p_value == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_one_seed_has_no_interval() -> None:
    actual = seed_interval([0.5])
    assert actual.mean == 0.5
    assert np.isnan([actual.low, actual.high, actual.p_value]).all()


def test_holm_by_hand() -> None:
    # ascending .01 .02 .03 .5: times 4, 3, 2, 1 = .04 .06 .06 .5
    assert holm([0.5, 0.02, 0.01, 0.03]) == pytest.approx([0.5, 0.06, 0.04, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("values", [np.array([]), np.array([1.0, np.nan]), np.ones((2, 2))])
def test_bad_values_are_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="values has shape"):
        bootstrap_mean(values)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="level"):
        bootstrap_mean(np.ones(3), level=1.0)
    with pytest.raises(ValueError, match="the same users"):
        paired_difference(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="p_values"):
        holm([1.5])
    with pytest.raises(ValueError, match="seed"):
        seed_interval([])


def test_several_bootstraps_at_once_are_those_of_each_alone() -> None:
    """Against the plain loop that gathers the values of each resample, to the last bit where values are whole."""
    generator = np.random.default_rng(5)
    values = (generator.random((4, 300)) < 0.2).astype(float) - (generator.random((4, 300)) < 0.15)
    values[2] = 0.0
    values[3] = generator.standard_normal(300)
    actual = bootstrap_means(values, resamples=400, level=0.9, seed=3)
    for row, interval in zip(values, actual, strict=True):
        assert bootstrap_mean(row, resamples=400, level=0.9, seed=3) == pytest.approx(interval, rel=1e-12, abs=1e-15)
        draws = np.random.default_rng(3).integers(0, 300, (400, 300))
        means = np.array([row[rows].mean() for rows in draws])
        low, high = np.quantile(means, [0.05, 0.95])
        p = min(1.0, 2 * (1 + min((means <= 0).sum(), (means >= 0).sum())) / 401)
        assert interval == pytest.approx((row.mean(), low, high, p), rel=1e-12, abs=1e-15)
    assert actual[2] == (0.0, 0.0, 0.0, 1.0)
    thirds = np.array([[1 / 3, -1 / 3, 0.1, -0.1] * 20])  # sums that cancel but for rounding count on both sides
    p = bootstrap_means(thirds, resamples=2000)[0].p_value
    assert p > 0.9
    with pytest.raises(ValueError, match=r"expected \(A, N\)"):
        bootstrap_means(values[0])
