from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import tea_tasting as tt
from scipy import stats

from adagrpo.experiments.duration import anytime_factor, users_needed
from adagrpo.experiments.effects import aggregates, effect
from adagrpo.experiments.validity import DRAWS, check_ratio, permutation, skew
from adagrpo.types import Floats

GENERATOR = np.random.default_rng(0)
SHOWN = [1.0 + GENERATOR.poisson(4, size) for size in (300, 400)]
CLICKS = [
    GENERATOR.binomial(shown.astype(int), rate).astype(float) for shown, rate in zip(SHOWN, (0.3, 0.35), strict=True)
]
BEFORE = [clicks + GENERATOR.normal(0, 1, len(clicks)) for clicks in CLICKS]
Z = stats.norm.ppf(0.975)


def test_a_mean_is_held_against_another_by_the_difference_and_by_the_logarithm_of_their_ratio() -> None:
    found = effect(*({"sum": clicks} for clicks in CLICKS))
    assert found is not None
    a, b = CLICKS
    np.testing.assert_allclose(found.relative, b.mean() / a.mean() - 1, rtol=1e-12)
    log_error = math.sqrt(a.var(ddof=1) / len(a) / a.mean() ** 2 + b.var(ddof=1) / len(b) / b.mean() ** 2)
    np.testing.assert_allclose(found.error, log_error, rtol=1e-9)
    welch = stats.ttest_ind(b, a, equal_var=False)
    statistics = [math.log(b.mean() / a.mean()) / log_error, welch.statistic]
    np.testing.assert_allclose(found.p_value, 2 * stats.norm.sf(min(statistics)), rtol=1e-9)
    error = math.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
    logs = [b.mean() / a.mean() * math.exp(sign * Z * log_error) - 1 for sign in (-1, 1)]
    differences = [(b.mean() - a.mean() + sign * Z * error) / a.mean() for sign in (-1, 1)]
    np.testing.assert_allclose(
        found.fixed(0.05), [min(logs[0], differences[0]), max(logs[1], differences[1])], rtol=1e-9
    )
    detectable = found.detectable(3.0, 0.8)  # an effect of which 80 % of such intervals are above 0
    np.testing.assert_allclose(detectable, math.expm1((3.0 + stats.norm.ppf(0.8)) * log_error), rtol=1e-9)


def test_a_ratio_is_that_of_sums_with_the_variance_of_its_residuals() -> None:
    arms = [{"sum": clicks, "per": shown} for clicks, shown in zip(CLICKS, SHOWN, strict=True)]
    found = effect(*arms)
    assert found is not None
    ratios, variances = [], []
    for clicks, shown in zip(CLICKS, SHOWN, strict=True):
        ratio = clicks.sum() / shown.sum()
        residuals = clicks - ratio * shown  # the delta method, as a linearised user
        ratios.append(ratio)
        variances.append(residuals.var(ddof=1) / shown.mean() ** 2 / len(shown))
    np.testing.assert_allclose((found.control, found.treatment), ratios, rtol=1e-12)
    relative_variances = [variance / ratio**2 for ratio, variance in zip(ratios, variances, strict=True)]
    statistics = [
        math.log(ratios[1] / ratios[0]) / math.sqrt(sum(relative_variances)),
        (ratios[1] - ratios[0]) / math.sqrt(sum(variances)),
    ]
    np.testing.assert_allclose(found.p_value, 2 * stats.norm.sf(min(statistics)), rtol=1e-9)


def rare(generator: np.random.Generator, users: int) -> Floats:
    return generator.poisson(0.02, users).astype(float)


def spent(generator: np.random.Generator, users: int) -> Floats:
    """A few users have most of it."""
    return np.where(generator.random(users) < 0.03, generator.lognormal(0, 2, users), 0.0)


def test_an_effect_is_shown_where_its_interval_leaves_out_0_and_there_alone() -> None:
    """A few large users mislead the logarithm of a ratio; of arms that are equal in size, not their difference."""
    shown = alone = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        control, treatment = spent(generator, 300), spent(generator, 300)
        found = effect({"sum": control}, {"sum": treatment})
        if found is None:
            continue
        assert found.chance is None
        for alpha in (0.05, 0.2):
            low, high = found.fixed(alpha)
            assert (found.p_value <= alpha) == (not low <= 0 <= high)
            assert low >= -1
        shown += found.p_value <= 0.05
        alone += abs(math.log1p(found.relative)) > Z * found.error
    assert shown <= 10 < alone  # 5 % of 200


def test_users_dealt_anew_say_how_far_chance_leads() -> None:
    generator = np.random.default_rng(3)
    control, treatment = spent(generator, 400), spent(generator, 60)
    here = permutation(control, treatment)

    def welch(a: Floats, b: Floats, axis: int) -> Floats:
        variances = b.var(axis=axis, ddof=1) / b.shape[axis] + a.var(axis=axis, ddof=1) / a.shape[axis]
        return np.asarray((b.mean(axis=axis) - a.mean(axis=axis)) / np.sqrt(np.maximum(variances, 1e-300)))

    theirs = stats.permutation_test(
        (control, treatment), welch, vectorized=True, n_resamples=DRAWS, alternative="two-sided", rng=4
    )
    near = 3 * math.sqrt(theirs.pvalue / 2 / DRAWS) * 2 * math.sqrt(2)  # two draws of as many
    assert here.p_value(float(theirs.statistic)) == pytest.approx(theirs.pvalue, abs=near)
    turned = permutation(treatment, control)
    np.testing.assert_allclose(turned.reach(1.0)[0], here.reach(1.0)[1], rtol=1e-6)
    assert skew(treatment, control) == pytest.approx(-skew(control, treatment)) and skew(control, control[::-1]) == 0


def test_parts_of_users_are_dealt_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(5)
    control, treatment = spent(generator, 5400), spent(generator, 600)
    one_by_one = permutation(control, treatment)
    monkeypatch.setattr("adagrpo.experiments.validity.PARTS", 2000)
    np.testing.assert_allclose(permutation(control, treatment).reach(1.5), one_by_one.reach(1.5), rtol=0.1)
    tiny = permutation(spent(generator, 2998), spent(generator, 2))  # one part may be one user
    assert np.isfinite(tiny.errors).all()


@pytest.mark.slow  # 100 trials each
@pytest.mark.parametrize(("draw", "users"), [(spent, (90, 900)), (spent, (900, 90)), (rare, (90, 900))])
def test_unequal_arms_of_which_a_few_users_have_most_err_no_more_often_than_they_say(
    draw: Callable[[np.random.Generator, int], Floats], users: tuple[int, int]
) -> None:
    shown = by_difference = 0
    for seed in range(100):
        generator = np.random.default_rng(seed)
        control, treatment = (draw(generator, count) + 0.001 * generator.random(count) for count in users)
        found = effect({"sum": control}, {"sum": treatment})
        assert found is not None and found.chance is not None
        for alpha in (0.002, 0.05, 0.2):
            low, high = found.fixed(alpha)
            assert (found.p_value <= alpha) == (not low <= 0 <= high)
            assert -1 <= low <= found.relative <= high < math.inf
        shown += found.p_value <= 0.05
        by_difference += float(stats.ttest_ind(treatment, control, equal_var=False).pvalue) <= 0.05
    assert shown <= 10 < by_difference  # of 100; 5 % are 5 ± 2.2


@pytest.mark.parametrize("value", [1e4, 1e12])
def test_one_user_alone_shows_no_effect_at_any_look(value: float) -> None:
    odd = np.ones(200)
    odd[0] = value
    found = effect({"sum": GENERATOR.poisson(1, 200).astype(float)}, {"sum": odd})
    assert found is not None
    low, high = found.within(1.96)
    assert low < 0 < high and found.p_value > 0.3


def test_the_delta_method_agrees_with_the_bootstrap() -> None:
    clicks, shown = CLICKS[0], SHOWN[0]
    drawn = np.random.default_rng(1).integers(0, len(clicks), (4000, len(clicks)))
    spread = (clicks[drawn].sum(1) / shown[drawn].sum(1)).std()
    ratio = clicks.sum() / shown.sum()
    formula = math.sqrt((clicks - ratio * shown).var(ddof=1) / shown.mean() ** 2 / len(shown))
    np.testing.assert_allclose(formula, spread, rtol=0.05)  # 4,000 resamples tell a spread to about 1 %


def test_cuped_is_the_regression_on_what_was_before() -> None:
    found = effect(*({"sum": clicks, "before": before} for clicks, before in zip(CLICKS, BEFORE, strict=True)))
    plain = effect(*({"sum": clicks} for clicks in CLICKS))
    assert found is not None and plain is not None
    covariate, value = np.concatenate(BEFORE), np.concatenate(CLICKS)
    theta = np.cov(covariate, value)[0, 1] / covariate.var(ddof=1)
    means = [
        clicks.mean() - theta * (before.mean() - covariate.mean())
        for clicks, before in zip(CLICKS, BEFORE, strict=True)
    ]
    # tea-tasting pools the arms by sums of squares within and between, as the plain formula does
    np.testing.assert_allclose((found.control, found.treatment), means, rtol=1e-9)
    assert found.error < plain.error / 1.3


def test_a_covariate_that_is_always_the_same_explains_nothing() -> None:
    flat = [{"sum": clicks, "before": np.zeros(len(clicks))} for clicks in CLICKS]
    found, plain = effect(*flat), effect(*({"sum": clicks} for clicks in CLICKS))
    assert found is not None and plain is not None
    assert found.chance is None and plain.chance is None
    np.testing.assert_allclose(found[:-1], plain[:-1], rtol=1e-9)


def test_no_effect_of_nobody_and_of_nothing() -> None:
    assert effect({"sum": np.ones(1)}, {"sum": np.ones(9)}) is None
    assert effect({"sum": np.zeros(9)}, {"sum": np.arange(9.0)}) is None
    assert effect({"sum": np.ones(9)}, {"sum": np.ones(9)}) is None
    for share in (0.1, 0.3, 1.0):  # always the same, but for rounding
        arms = [{"sum": share * shown, "per": shown} for shown in (SHOWN[0], SHOWN[1][:40])]
        assert effect(*arms) is None
    explained = [{"sum": 0.3 * before, "before": before} for before in BEFORE]
    assert effect(*explained) is None


@pytest.mark.parametrize("value", [1e150, 1e200, math.inf])
def test_nothing_is_said_of_a_number_that_no_square_holds(value: float) -> None:
    odd = CLICKS[0].copy()
    odd[3] = value
    assert effect({"sum": odd}, {"sum": CLICKS[1]}) is None
    assert value < 1e200 or effect({"sum": CLICKS[0]}, {"sum": odd}) is None


def test_the_size_of_an_experiment_is_that_of_tea_tasting() -> None:
    columns = {"sum": CLICKS[0], "per": SHOWN[0]}
    ratio = CLICKS[0].sum() / SHOWN[0].sum()
    variation = float((CLICKS[0] - ratio * SHOWN[0]).std(ddof=1) / CLICKS[0].mean())
    metric = tt.RatioOfMeans("sum", "per", rel_effect_size=0.001, use_t=False, equal_var=True)
    theirs = metric.solve_power_from_aggregates(aggregates(columns), "n_obs")[0].n_obs
    ours = users_needed(variation, 0.001, (0.5, 0.5), Z + stats.norm.ppf(0.8))
    assert ours == pytest.approx(theirs, rel=2e-3)  # log(1 + e) in place of e


def test_the_sequence_is_the_formula_and_tightest_where_it_was_made_for() -> None:
    rho = math.sqrt((-2 * math.log(0.05) + math.log(-2 * math.log(0.05) + 1)) / 500)
    for seen in (20, 500, 3000):
        width = math.sqrt(2 * (seen * rho**2 + 1) / (seen**2 * rho**2) * math.log(math.sqrt(seen * rho**2 + 1) / 0.05))
        assert anytime_factor(seen, 500, 0.05) / math.sqrt(seen) == pytest.approx(width, rel=1e-12)
    here = anytime_factor(500, 500, 0.05)
    assert all(here <= anytime_factor(500, made_for, 0.05) for made_for in (100, 300, 450, 550, 900, 2000))
    assert here > Z


def test_the_check_of_shares_is_the_test_of_a_binomial() -> None:
    z = (5200 - 5100) / math.sqrt(10200 / 4)
    assert check_ratio([5000, 5200], [1, 1]) == pytest.approx(2 * stats.norm.sf(z), rel=1e-9)
    assert check_ratio([200, 800], [1, 4]) == 1


@pytest.mark.parametrize(("share", "users"), [(0.1, 2), (0.3, 2), (0.5, 5), (0.9, 30), (0.97, 30)])
def test_a_few_users_who_are_all_the_same_are_so_by_chance(share: float, users: int) -> None:
    """All of a small arm have an event: twice the chance that so many drawn users of either arm have one."""
    control, treatment = np.repeat([1.0, 0.0], [round(1000 * share), round(1000 * (1 - share))]), np.ones(users)
    chance = 1.0
    for drawn in range(users):
        chance *= (1000 * share + users - drawn) / (1000 + users - drawn)
    for metric in ({}, {"per": 2.0}):
        arms = [
            {"sum": arm} | {name: np.full(len(arm), value) for name, value in metric.items()}
            for arm in (control, treatment)
        ]
        found = effect(*arms)
        assert found is not None and found.relative == pytest.approx(1 / share - 1)
        # 1,999 draws, four standard errors of their share
        assert found.p_value / 2 == pytest.approx(
            min(chance, 0.5), abs=4 * (chance * (1 - chance) / 1999) ** 0.5 + 1e-3
        )
        assert (found.within(1.96)[0] <= 0) == (found.p_value > 0.05)
