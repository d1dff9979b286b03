"""The charts of a diagnosis say what its numbers say."""

from __future__ import annotations

import re

from adagrpo.report.diagnosis_page import exposure_figures, weight_figures


def interval(mean: float, half: float = 0.01) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half, "p_value": 0.5}


def both(mean: float) -> dict[str, dict[str, float]]:
    return {"hr@10": interval(mean), "ndcg@10": interval(mean / 2)}


def test_the_curve_has_a_point_a_weight_and_marks_the_chosen_ones() -> None:
    content = {
        "weights": [0.0, 0.5, 4.0, None],
        "chosen": [4.0, 4.0],
        "ranker": [both(value) for value in (0.0, 0.02, 0.04, -0.02)],
        "shuffled": [both(0.0)] * 4,
        "mix": both(0.03),
    }
    ndcg, hr = weight_figures(content)
    assert all(f">{name}</text>" in ndcg.svg for name in ("0", "½", "4", "∞", "mix, chosen weights"))
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
