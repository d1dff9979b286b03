"""The study of off-policy estimates on public logs: its truth by hand, and its small logs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from research.off_policy_logs.measure import Videos, open_bandit, small_logs, softmax


def videos(size: int = 20, each: int = 50) -> Videos:
    draw = np.random.default_rng(0)
    rate = draw.uniform(0.1, 0.4, size)
    rows = np.repeat(np.arange(size), each)
    clicked = (draw.random(len(rows)) < rate[rows]).astype(float)
    return Videos(rows, clicked, np.arange(size) * each, np.full(size, each), draw.normal(size=size), rate)


def test_the_truth_is_a_sum_over_videos() -> None:
    few = Videos(
        np.array([0, 0, 1, 1, 1, 1]), np.array([1.0, 0, 0, 0, 0, 1]), np.array([0, 2]), np.array([2, 4]),
        np.zeros(2), np.zeros(2),
    )  # fmt: skip
    assert few.truth(np.array([0.6, 0.4])) == pytest.approx(0.6 * 0.5 + 0.4 * 0.25)
    np.testing.assert_allclose(softmax(np.log([1.0, 3.0]), 1.0), [0.25, 0.75])


def test_estimates_of_small_logs_are_around_the_truth() -> None:
    for row in small_logs(videos(), 60, answers=2000):
        assert abs(row["bias"]) < 4 * row["bias_error"] and row["coverage"] > 0.85
        assert row["rmse"] < 0.1 and row["refused"] <= 1


def test_both_ways_on_two_policies(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    bts = np.array([0.1, 0.2, 0.7])
    parts = []
    for name, policy in (("random", np.full(3, 1 / 3)), ("bts", bts)):
        items = draw.choice(3, size=20_000, p=policy)
        clicks = (draw.random(20_000) < np.array([0.1, 0.2, 0.3])[items]).astype(np.int8)
        parts.append(
            pl.DataFrame(
                {"campaign": "all", "policy": name, "item_id": items, "click": clicks, "propensity": policy[items]}
            )
        )
    pl.concat(parts).write_parquet(tmp_path / "logs.parquet")
    for row in open_bandit(tmp_path / "logs.parquet"):
        truth = {"uniform": 0.2, "thompson": 0.26}[row["target"]]
        for name in ("as_it_was", "ips", "snips"):
            assert abs(row[name][0] - truth) < 0.015 and row[name][1] < row[name][0] < row[name][2]
        assert row["refused"] is None and abs(row["mean_weight"] - 1) < 0.05
