"""What stays significant, by how many tests the correction covers."""

from __future__ import annotations

from typing import Any

from research.fair_trial.corrected import Difference, corrected_table, differences_in


def content(p_values: dict[str, float], pairs: dict[tuple[str, str], float]) -> dict[str, Any]:
    """A comparison whose arms gain a point, and whose pairs lose one."""

    def against(difference: float, p: float) -> dict[str, Any]:
        return {"against": {"hr@10": {"difference": difference, "p": p}}, "checkpoint": "final", "p_holm": p}

    baseline: dict[str, Any] = {"arm": "nll", "checkpoint": "final", "p_holm": None, "against": {}}
    return {
        "plan": {"metric": "hr@10"},
        "rows": [baseline, *({"arm": arm} | against(0.01, p) for arm, p in p_values.items())],
        "pairs": [{"arm": a, "other": b} | against(-0.01, p) for (a, b), p in pairs.items()],
    }


def test_a_comparison_has_its_arms_and_its_pairs() -> None:
    found = differences_in("trial-a", content({"x": 0.01}, {("x-gate", "x"): 0.02}))
    assert found == [
        Difference("trial-a", "x", "", "final", 0.01, 0.01),
        Difference("trial-a", "x-gate", "x", "final", -0.01, 0.02),
    ]


def test_more_tests_leave_fewer_gains() -> None:
    # Holm's first step at .05 by hand: of 2 tests p <= .025, of 3 .0167, of 4 .0125, of 6 .0083
    first = differences_in("trial-a", content({"x": 0.02, "rerank": 0.5}, {("x-gate", "x"): 0.03}))
    second = differences_in("trial-b", content({"x": 0.5, "rerank": 0.012}, {("x-gate", "x-random"): 0.5}))
    other = differences_in("teacher-a", content({"x": 1e-9}, {}))
    table = corrected_table([*first, *second, *other], ["trial-a", "trial-b"])
    assert [row[1:] for row in table.rows] == [
        ("2, 1", "1: a 1", "1: b 1", "1: a 1", "0"),
        ("3", "0", "1: b 1", "0", "0"),
        ("4, 2", "0", "1: b 1", "0", "0"),
        ("6", "0", "0", "0", "0"),
        ("7", "0", "0", "0", "0"),
    ]
