"""The ranker's report in numbers: each against a loop, with ties, constants and bands at their edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from adagrpo.evaluation.reward_quality import (
    band,
    calibration_bins,
    case_quality,
    expected_calibration_error,
    interval,
    popularity_bands,
    rank_correlation,
    shown_quality,
)


def test_case_quality_is_the_loop() -> None:
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 6, (50, 20)).astype(np.float32)  # many ties
    targets = generator.integers(0, 20, 50)
    actual = case_quality(scores, targets)
    for n, target in enumerate(targets):
        others = [scores[n, i] for i in range(20) if i != target]
        own = scores[n, target]
        points = sum((own > other) + 0.5 * (own == other) for other in others)
        rank = 1 + sum(other >= own for other in others)
        total = sum(math.exp(float(score)) for score in scores[n])
        assert actual.auc[n] == pytest.approx(points / 19)
        assert actual.ndcg[n] == pytest.approx(1 / math.log2(1 + rank) if rank <= 10 else 0)
        assert actual.confidence[n] == pytest.approx(math.exp(float(scores[n].max())) / total)
        assert actual.hit[n] == (list(scores[n]).index(max(scores[n])) == target)


def test_a_constant_ranker_is_chance() -> None:
    actual = case_quality(np.full((3, 8), 1e4, np.float32), np.array([0, 3, 7]))
    assert actual.auc.tolist() == [0.5] * 3 and actual.confidence.tolist() == [1 / 8] * 3
    assert actual.ndcg.tolist() == [1 / math.log2(9)] * 3  # the worst of the ranks that it allows


def test_calibration_by_hand() -> None:
    confidence = np.array([0.0, 0.05, 0.1, 0.99, 1.0])
    hit = np.array([False, True, False, True, True])
    rows = calibration_bins(confidence, hit)
    assert [row["cases"] for row in rows] == [2, 1, 2]  # an edge belongs to the bin above it, 1 to the last
    assert [row["hit_rate"] for row in rows] == [0.5, 0.0, 1.0]
    assert [row["confidence"] for row in rows] == pytest.approx([0.025, 0.1, 0.995])
    expected = (2 * 0.475 + 1 * 0.1 + 2 * 0.005) / 5
    assert expected_calibration_error(confidence, hit) == pytest.approx(expected)
    generator = np.random.default_rng(1)
    honest = generator.random(20_000)
    assert expected_calibration_error(honest, generator.random(20_000) < honest) < 0.02
    assert expected_calibration_error(honest, generator.random(20_000) < honest**3) > 0.1


def test_rank_correlation_is_that_of_scipy() -> None:
    generator = np.random.default_rng(2)
    one, other = generator.integers(0, 5, (2, 30, 12)).astype(float)
    actual = rank_correlation(one, other)
    assert actual == pytest.approx([stats.spearmanr(a, b).statistic for a, b in zip(one, other, strict=True)])
    one[0] = 3.0
    assert np.isnan(rank_correlation(one, other)[0]) and not np.isnan(rank_correlation(one, other)[1:]).any()


def test_bands() -> None:
    assert band(np.array([0, 4, 5, 9, 10, 19, 20, 10**6]), (5, 10, 20)).tolist() == (
        ["0-4", "0-4", "5-9", "5-9", "10-19", "10-19", "20+", "20+"]
    )
    names = popularity_bands(np.array([50, 0, 10, 10, 10, 10, 10]))
    assert names.tolist() == ["head", "tail", "tail", "tail", "middle", "middle", "middle"]


def test_an_interval_is_over_users_and_leaves_out_what_is_not_known() -> None:
    values, users = np.array([1.0, 0.0, np.nan, 0.5, 0.5]), np.array([7, 7, 8, 9, 9])
    actual = interval(values, users)
    assert actual == {"mean": 0.5, "low": 0.5, "high": 0.5, "users": 2}
    assert interval(np.array([np.nan]), np.array([1])) is None
    many = interval(np.random.default_rng(0).normal(size=4000), np.arange(4000) // 2)
    assert many is not None  # 2,000 users of two values each: standard error 1 / sqrt(4000)
    assert many["high"] - many["low"] == pytest.approx(2 * 1.96 / math.sqrt(4000), rel=0.15)


def test_what_was_shown_is_ranked_user_by_user() -> None:
    scores = np.array([2.0, 2.0, 1.0, 5.0, 4.0, 7.0, 8.0])
    clicked = np.array([True, False, False, False, True, True, True])
    users = np.array([0, 0, 0, 3, 3, 8, 8])
    actual = shown_quality(scores, clicked, users)
    nothing = np.nan  # the third user left nothing that the clicked ones could stand above
    np.testing.assert_allclose(actual.auc, [0.75, nothing, nothing, nothing, 0.0, nothing, nothing])
    second = 1 / np.log2(3)
    first = (1 + second) / 2  # level with another
    np.testing.assert_allclose(actual.ndcg, [first, nothing, nothing, second, nothing, nothing, nothing])
    cut = shown_quality(scores, clicked, users, k=1)
    np.testing.assert_allclose(cut.ndcg[[0, 3]], [0.5, 0.0])
