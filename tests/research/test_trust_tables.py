"""The page of the study of learned trust says what its rows say."""

from __future__ import annotations

import numpy as np
import pytest

from adagrpo.evaluation.crossed import crossed_interval, crossed_parts
from adagrpo.report import read_rows
from research.learned_trust.real import Reranked, over_seeds
from research.learned_trust.tables import HERE, arms_table, over_table, pressed_table, real_table, rerank_table, written
from research.worlds_pooled import over_worlds


def test_the_page_is_what_its_rows_say() -> None:
    text, rows = (HERE / "README.md").read_text(encoding="utf-8"), list(map(dict, read_rows(HERE / "trust.jsonl")))
    real = list(map(dict, read_rows(HERE / "real.jsonl")))
    assert rerank_table(rows).rows and arms_table(rows).rows and real_table(real).rows
    assert written(text, rows, real) == text
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
        written("nothing", [], [])


def test_real_lists_have_differences_over_users_and_seeds() -> None:
    rng = np.random.default_rng(0)
    policy = (rng.random((3, 400)) < 0.1).astype(float)
    better = np.maximum(policy, rng.random((3, 400)) < 0.1)
    seeds = [
        Reranked("levels", weight, *orders)
        for weight, *orders in zip((1.0, 2.0, 4.0), policy, policy, better, strict=True)
    ]
    row = over_seeds(seeds)
    interval = crossed_interval(crossed_parts([*(better - policy)]))
    assert row["trusted"] == row["trusted_minus_one_weight"] == [interval.mean, interval.low, interval.high]
    assert row["one_weight"] == [0.0, 0.0, 0.0] and row["policy"] == pytest.approx(policy.mean())
    (line,) = real_table([{"set": "tiny"} | row]).rows
    assert line[:4] == ("tiny", "400", "levels, levels, levels", "1, 2, 4")
    assert line[6] == line[7] and line[7].startswith(f"+{100 * interval.mean:.2f} (+")
