"""The figure of the fair trial: its marks are those of the rows, and everything in it is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from adagrpo.errors import UserError
from research.pages.trial_picture import GATES, OBJECTIVES, RERANKED, SETS, Outcome, outcomes, trial_picture, trials

RESEARCH = Path(__file__).parents[2] / "research"


def test_marks_are_the_rows_of_the_trial() -> None:
    marks = {(mark.data, mark.row, mark.gate): mark for mark in outcomes(trials(RESEARCH))}
    assert len(marks) == len(SETS) * (len(OBJECTIVES) * len(GATES) + 1)
    # as the table of research/fair_trial has them
    beam, feed = (
        marks["LastFM", "GRPO on the beam", GATES[""]],
        marks["KuaiRand, a feed", "GRPO on samples", GATES["-random"]],
    )
    assert [round(x, 2) for x in beam[3:]] == [0.89, 0.08, 1.70]
    assert [round(x, 2) for x in feed[3:]] == [-0.75, -1.18, -0.32]
    assert round(marks["MovieLens-1M", RERANKED, RERANKED].difference, 2) == 1.80


def test_the_figure_names_every_set_row_and_gate() -> None:
    marks = [Outcome("a & b", "x", gate, 0.0, -9.0, 1.0) for gate in GATES.values()]
    svg = trial_picture([*marks, Outcome("a & b", RERANKED, RERANKED, 1.0, 0.0, 2.0)])
    shown = ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert {"a & b", "x", RERANKED, *GATES.values()} <= set(shown)


def test_without_its_rows_there_is_no_figure_and_a_missing_arm_is_named(tmp_path: Path) -> None:
    assert trials(tmp_path) == []
    for path in trials(RESEARCH):
        shutil.copy(path, tmp_path / path.name)
    broken = tmp_path / "trial-lastfm.comparison.json"
    content = json.loads(broken.read_text(encoding="utf-8"))
    content["rows"] = [row for row in content["rows"] if row["arm"] != "fair-distill-gate"]
    del content["sha256"]
    broken.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match="no hr@10 of the arm fair-distill-gate"):
        outcomes(trials(tmp_path))
