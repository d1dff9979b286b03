"""The charts of a diagnosis say what its numbers say."""

from __future__ import annotations

import re
from typing import Any

import pytest

from adagrpo.report.diagnosis_figures import exposure_figures, map_figures, weight_figures


def interval(mean: float, half: float = 0.01) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half, "p_value": 0.5}


def both(mean: float) -> dict[str, dict[str, float]]:
    return {"hr@10": interval(mean), "ndcg@10": interval(mean / 2)}


@pytest.fixture
def content() -> dict[str, Any]:
    rows, columns = ["target NLL low (≤ 1.00)", "target NLL high (> 1.00)"], ["q < 0.5", "q ≥ 0.5"]
    uplifts = iter([0.104, -0.25, 0.0])
    cells = [
        {
            "difficulty": row,
            "discriminability": column,
            "ranker": {"cases": 1200, **both(next(uplifts))} if (row, column) != (rows[1], columns[1]) else EMPTY,
            "shuffled": {"cases": 1.2, "hr@10": 0.05, "ndcg@10": 0.01},
        }
        for row in rows
        for column in columns
    ]
    return {"difficulty": rows, "discriminability": columns, "cells": cells}


EMPTY = {"cases": 0, "hr@10": None, "ndcg@10": None}


def test_the_map_prints_each_uplift_and_its_cases(content: dict[str, Any]) -> None:
    own, control = map_figures(content)
    written = re.findall(r"<text [^>]*>([^<]*)</text>", own.svg)
    assert {"+10.4", "-25.0", "0.0", "1,200 cases", "–", "0 cases"} <= set(written)
    assert written.index("high") < written.index("low")  # the harder ones stand above
    assert control.svg.count(">+5.0</text>") == 4 and control.svg.count(">1 case</text>") == 4
    assert own.numbers is not None
    assert own.numbers.rows[0] == (
        *("target NLL low (≤ 1.00)", "q < 0.5", "1,200", "+10.4 (+9.4 to +11.4)", "+0.0520 (+0.0420 to +0.0620)"),
        *("1", "+5.0"),
    )
    assert own.numbers.rows[3][2:5] == ("0", "–", "–")


def test_both_maps_have_one_scale(content: dict[str, Any]) -> None:
    """The strongest value of the two, -.25, has the full colour; +.05 of the control a fifth of it."""
    own, control = map_figures(content)
    assert "opacity: 0.54" in own.svg
    assert set(re.findall(r"opacity: ([\d.]+)", control.svg)) == {"0.14"}


def test_the_curve_has_a_point_a_weight_and_marks_the_chosen_ones() -> None:
    content = {
        "weights": [0.0, 0.5, 4.0, None],
        "chosen": [4.0, 4.0],
        "ranker": [both(value) for value in (0.0, 0.02, 0.04, -0.02)],
        "shuffled": [both(0.0)] * 4,
        "mix": both(0.03),
    }
    ndcg, hr = weight_figures(content)
    assert all(f">{name}</text>" in ndcg.svg for name in ("0", "0.5", "4", "∞", "mix, chosen weights"))
    assert ndcg.numbers is not None and hr.numbers is not None
    assert [row[0] for row in hr.numbers.rows] == ["0", "0.5", "4", "∞", "mix (4)"]
    assert hr.numbers.rows[2][1] == "+4.0 (+3.0 to +5.0)" and hr.numbers.rows[4][1:] == ("+3.0 (+2.0 to +4.0)", "–")
    assert ndcg.numbers.rows[1][1] == "+0.0100 (+0.0000 to +0.0200)"
    triangles = re.findall(r"<use [^>]*#a83279", ndcg.svg)
    assert len(triangles) == 2  # one at the chosen weight, one in the legend


def test_bins_without_cases_have_no_point() -> None:
    bins = [
        {"bin": "0 to 3", "items": 30, "cases": 0, "ranker": None, "policy": None},
        {"bin": "4 and more", "items": 1000, "cases": 12, "ranker": interval(0.75), "policy": interval(0.5)},
    ]
    (logged,) = exposure_figures({"counted": "times shown", "bins": bins})
    assert logged.numbers is not None and logged.numbers.header[0] == "times shown"
    assert logged.numbers.rows == (
        ("0 to 3", "30", "0", "–", "–"),
        ("4 and more", "1,000", "12", "75.0 % (74.0 to 76.0)", "50.0 % (49.0 to 51.0)"),
    )
    known = [row | {"truth": {"cases": 5, "ranker": interval(0.6), "policy": None}} for row in bins]
    _, truth = exposure_figures({"counted": "times shown", "bins": known})
    assert truth.numbers is not None and truth.numbers.rows[0][2:] == ("5", "60.0 % (59.0 to 61.0)", "–")
