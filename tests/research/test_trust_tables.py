"""The page of the study of learned trust says what its rows say."""

from __future__ import annotations

import pytest

from adagrpo.report import read_rows
from research.learned_trust.tables import HERE, arms_table, over_table, pressed_table, rerank_table, written
from research.worlds_pooled import over_worlds


def test_the_page_is_what_its_rows_say() -> None:
    text, rows = (HERE / "README.md").read_text(encoding="utf-8"), read_rows(HERE / "trust.jsonl")
    assert rerank_table(rows).rows and arms_table(rows).rows
    assert written(text, rows) == text
    first = next(row for row in rows if "arms" not in row)
    mean = first["trusted_minus_one_weight"]["true_utility@10"][0]
    assert f"{mean:+.4f}".replace("-", "\N{MINUS SIGN}") in text


def entry(mean: float) -> dict[str, list[float]]:
    return {"true_utility@10": [mean, mean - 0.00196, mean + 0.00196]}


def test_arms_of_one_pressure_and_re_ranking_are_pooled_over_worlds_and_those_of_one_lambda_are_not() -> None:
    worlds = [
        {
            "by": by,
            "set": changed,
            "arms": {"all": entry(x), "trusted": entry(2 * x)},
            "trusted_minus": {"all": entry(x)},
        }
        | {"world": f"{x}"}
        for x in (0.01, 0.03)
        for by, changed in (("exposure", ["objective.pressure=1"]), (None, []))
    ]
    pressed, lone = pressed_table(worlds), arms_table(worlds)
    assert [row[:2] for row in pressed.rows] == [("half of the items", "all"), ("half of the items", "trusted")]
    shown = over_worlds([[0.01, 1e-6], [0.03, 1e-6]])
    assert shown is not None and pressed.rows[0][3] == f"+{shown[0]:.4f} ({shown[1]:+.4f} … {shown[2]:+.4f})".replace(
        "-", "\N{MINUS SIGN}"
    )
    assert pressed.rows[0][4] == "+0.0100, +0.0300" and {row[1] for row in lone.rows} == {"nowhere"}
    ranked = [{"by": "exposure", "trusted_minus_one_weight": entry(x)} for x in (0.01, 0.03)]
    assert over_table(ranked).rows == (("half of the items", pressed.rows[0][3], "+0.0100, +0.0300"),)


def test_a_page_without_a_place_for_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="the page has no <!-- trust: rerank -->"):
        written("nothing", [])
