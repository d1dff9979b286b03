"""The parts of the benchmarks that decide what is printed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import ablation
from benchmarks.rows import Row, median_spread, timed_in_turn


def test_timings_are_taken_in_turn_and_warm_up_is_left_out() -> None:
    order: list[str] = []
    first, second = timed_in_turn([lambda: order.append("a"), lambda: order.append("b")], repeats=3, warmup=2)
    assert order == ["a", "b"] * 5 and len(first) == len(second) == 3
    assert median_spread([3.0, 1.0, 2.0]) == (2.0, (1.0, 3.0))


def test_a_row_says_what_it_was_measured_on() -> None:
    row = Row("name", 1.0, "s", (0.5, 2.0), "<= 2", True, "nothing").as_json()
    assert {"machine", "threads", "versions", "commit", "target", "met", "against", "spread"} <= set(row)
    assert json.loads(json.dumps(row))["value"] == 1.0


def test_what_a_variant_is_worth_is_paired_by_user() -> None:
    reference = {"masked": np.array([1, 0, 11, 2]), "unmasked": np.array([0, 0, 0, 1])}
    variant = {"masked": np.array([1, 1, 10, 0]), "unmasked": np.array([0, 0, 0, 1])}
    found = ablation.worth(reference, variant)
    assert found["masked"]["hr@10"]["mean"] == pytest.approx(1 / 4)
    gained = 1 + 1 / np.log2(11) - 1 / np.log2(3)
    assert found["masked"]["ndcg@10"]["mean"] == pytest.approx(gained / 4)
    assert found["unmasked"]["hr@10"]["mean"] == 0.0
