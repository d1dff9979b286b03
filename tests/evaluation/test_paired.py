"""Checkpoints of a run against its references, user by user."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from adagrpo.evaluation.comparison import paired_outcomes


def users(*hits: float, ids: str = "abcd") -> pl.DataFrame:
    return pl.DataFrame({"user_id": list(ids), "hr@10": list(hits), "tail_share@10": [0.5] * len(hits)})


@pytest.fixture
def outcomes() -> dict[str, Any]:
    return paired_outcomes(
        {
            ("sft", "start"): users(0, 0, 1, 1),
            ("nll", "best"): users(1, 0, 1, 1),
            ("nll", "final"): users(0, 0, 0, 0),
            ("gated", "best"): users(1, 1, 1, 1),
            ("gated", "final"): users(0, 0, 1, 1),
        },
        resamples=500,
    )


def test_every_checkpoint_is_held_against_sft_and_the_nll_of_its_kind(outcomes: dict[str, Any]) -> None:
    means = {
        (row["arm"], row["checkpoint"], row["reference"]): row["metrics"]["hr@10"]["mean"]
        for row in outcomes["against"]
    }
    assert means == {
        ("nll", "best", "sft"): 0.25,
        ("nll", "final", "sft"): -0.5,
        ("gated", "best", "sft"): 0.5,
        ("gated", "best", "nll"): 0.25,
        ("gated", "final", "sft"): 0.0,
        ("gated", "final", "nll"): 0.5,
    }
    assert outcomes["users"] == 4
    same = next(row for row in outcomes["against"] if (row["arm"], row["checkpoint"]) == ("gated", "final"))
    assert same["metrics"]["hr@10"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "p_value": 1.0}


def test_own_intervals_have_no_test_and_only_metrics_with_a_direction(outcomes: dict[str, Any]) -> None:
    own = {(row["arm"], row["checkpoint"]): row["metrics"] for row in outcomes["checkpoints"]}
    assert set(own["sft", "start"]) == {"hr@10"}  # more or less of the tail is neither better nor worse
    assert own["gated", "best"]["hr@10"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    start = own["sft", "start"]["hr@10"]
    assert start["mean"] == 0.5 and 0.0 <= start["low"] < 0.5 < start["high"] <= 1.0


def test_other_users_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\('nll', 'best'\): measured on other users"):
        paired_outcomes({("sft", "start"): users(0, 1, 0, 1), ("nll", "best"): users(0, 1, 0, 1, ids="abce")})
