"""The page of an experiment: what it says where effects are shown and where they are not, and how a phone shows it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from adagrpo.report.experiment_page import experiment_page

from .test_whole_pages import CHROMIUM, Structure, measured

COUNTS = dict.fromkeys(
    (
        "answers",
        "answers_excluded",
        "answers_held_out",
        "answers_outside",
        "answers_stopped",
        "answers_misassigned",
        "requests_failed",
        "answers_of_other_plan",
        "answers_of_other_key",
        "answers_before_the_plan",
        "feedback_early",
        "feedback_late",
        "feedback_not_shown",
        "feedback_repeated",
        "feedback_unknown",
    ),
    0,
)
EFFECT = {
    "treatment": "new", "metric": "clicks", "control": 1.5, "value": 1.8, "relative": 0.2, "interval": [0.1, 0.3],
    "anytime": None, "p_value": 0.01, "p_holm": 0.02, "detectable": 0.1, "says": "better",
}  # fmt: skip
GUARD = {
    "treatment": "new", "guardrail": "latency", "margin": 0.05, "control": 20.0, "value": 20.4, "relative": 0.02,
    "interval": [0.01, 0.03], "says": "within",
}  # fmt: skip
RESULT: dict[str, Any] = {
    "experiment": "a <b> test",
    "kind": "ab",
    "look": "2026-11-26T00:00:00+00:00",
    "verdicts": {"new": "ship"},
    "reasons": {"new": "better: clicks"},
    "users": {"now": 500, "new": 1501},
    "counts": COUNTS | {"answers": 12345, "answers_stopped": 67},
    "stopped": {"new": "2026-11-25T12:00:00+00:00"},
    "notes": ["the log has no feedback of kind 'purchase' yet"],
    "sample_ratio": [{"part": "all", "counts": {"now": 500, "new": 1501}, "p_value": 0.25, "passes": True}],
    "effects": [EFFECT, {"treatment": "new", "metric": "dwell", "says": "unclear"}],
    "guardrails": [GUARD],
    "daily": [{"through": f"2026-11-{day:02}", **EFFECT} for day in range(1, 21)],
    "plan": "abcdef0123456789",
    "frozen": "2026-11-01T00:00:00+00:00",
    "frozen_after_the_start": True,
}


def test_what_the_page_says() -> None:
    page = experiment_page(RESULT)
    structure = Structure()
    structure.feed(page)
    assert not structure.open and structure.headings[0] == "h1" and len(structure.ids) == len(set(structure.ids))
    assert "a &lt;b&gt; test" in page and "<b>" not in page
    for said in (
        "<strong>new: ship.</strong> better: clicks",
        "now 500, new 1,501",
        "abcdef012345, frozen 2026-11-01T00:00:00+00:00, after the start",
        "new stopped", "2026-11-25T12:00:00+00:00", "+20.00%", "+10.00% to +30.00%", "12,345", ">67<", "Guardrails",
        "<p>the log has no feedback of kind &#39;purchase&#39; yet</p>",
    ):  # fmt: skip
        assert said in page, said
    charts = re.findall(r"<svg.*?</svg>", page, re.S)
    assert len(charts) == 3 and all('role="img"' in chart for chart in charts)
    assert sum(f">11-{day:02}<" in charts[1] for day in range(1, 21)) == 7  # every third is written
    assert not re.search(r"https?:|url\(|@import|<script", page.replace('xmlns="http://www.w3.org/2000/svg"', ""))


def test_a_page_without_effects_says_why_it_has_none() -> None:
    nothing = RESULT | {"verdicts": {"new": "invalid"}, "effects": [], "guardrails": [], "daily": [], "stopped": {}}
    page = experiment_page(nothing | {"reasons": {"new": "sample ratio of all: now 1"}})
    assert "<strong>new: invalid.</strong> sample ratio of all: now 1" in page and "<svg" not in page
    assert page.count('class="absent"') == 3
    assert "No effect is shown, so none is drawn by day." in page
    first = experiment_page(RESULT | {"daily": []})  # looks every day, within the first one
    assert "No day is over yet." in first and "none is drawn by day" not in first


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_on_a_phone_it_fits_in_all_colours(tmp_path: Path) -> None:
    result, _ = measured(experiment_page(RESULT), tmp_path)
    assert result["closed"] == result["opened"] == 400 and result["errors"] == []
    assert len(set(result["colours"])) == 2
