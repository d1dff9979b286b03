"""The figure of the README: its marks are those of the rows, and everything in it is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from adagrpo.errors import UserError
from research.pages.overview import ARMS, RECOMMENDED, Effect, effects, overview_figure, sources

RESEARCH = Path(__file__).parents[2] / "research"


def test_marks_are_the_rows_of_the_study() -> None:
    marks = {(mark.reward, mark.arm): mark for mark in effects(RESEARCH)}
    five = marks["five epochs", "mixture"]
    # as the table of research/reward_quality has it
    assert (round(five.difference, 4), round(five.low, 4), round(five.high, 4)) == (-0.0380, -0.0411, -0.0352)
    assert five.said == "do_not_use" and marks["trees", "mixture"].said == "use"
    assert round(marks["trees", "chosen-without-margin"].difference, 4) == 0.0011


def test_the_recommended_arm_is_drawn_where_it_was_run_or_is_continued_nll() -> None:
    recommended = {mark.reward: mark.difference for mark in effects(RESEARCH) if mark.arm == "chosen-without-margin"}
    assert recommended.keys() >= RECOMMENDED.keys() and len(recommended) == 9
    assert all(difference == 0 for reward, difference in recommended.items() if reward not in RECOMMENDED)
    assert "trees against popular items" not in recommended  # it has a weight there, and no run without the margin


def test_rewards_stand_from_best_said_to_worst() -> None:
    said = list(dict.fromkeys(mark.said for mark in effects(RESEARCH)))
    assert said == ["use", "rerank_only", "do_not_use"]


def test_the_figure_names_rewards_arms_and_what_diagnose_said() -> None:
    svg = overview_figure([Effect("a & b", "use", arm, -0.01, -0.02, 0.005) for arm in ARMS])
    root = ElementTree.fromstring(svg)
    shown = " ".join("".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text"))
    assert "a & b" in shown and "diagnose: use" in shown and all(name in shown for name in ARMS.values())
    assert "not run under" not in svg


def test_without_its_rows_there_is_no_figure_and_a_missing_arm_is_named(tmp_path: Path) -> None:
    assert sources(tmp_path) == []
    for path in sources(RESEARCH):
        shutil.copy(path, tmp_path / path.name)
    broken = tmp_path / "quality-marketplace.jsonl"
    rows = [json.loads(line) for line in broken.read_text(encoding="utf-8").splitlines()]
    rows[3]["arms"] = [arm for arm in rows[3]["arms"] if arm["arm"] != "mixture"]
    broken.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"quality-marketplace\.jsonl: no true_utility@10 of the arm mixture"):
        effects(tmp_path)
