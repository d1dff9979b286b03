"""The table of the keys of `steps.jsonl` in docs/reference/files.md has those that are written, and no others."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from adagrpo.errors import NotFinite
from adagrpo.objective import GroupSummary
from adagrpo.objective.terms import TERMS
from adagrpo.trainer import fit

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "files.md"
ARMS = [  # gate, term, options
    ("adagrpo", "grpo", {}),
    ("all", "grpo", {"grpo": {"beta": 0.1}}),
    ("all", "distill", {"distill": {"mass_weight": 1.0}}),
    ("all", "best_of_n", {}),
]


def named(key: str) -> str:
    """The key as the page writes it: of any term, of any number."""
    key = re.sub("^not_finite_.*", "not_finite_<name>", key)
    term = key.removeprefix("grad_norm_")
    return key.replace(term, "<term>") if term in TERMS else key


def test_the_table_has_the_keys_that_are_written(world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise NotFinite("rewards", "a reward is not finite")

    written: set[str] = set()
    for number, (gate, term, options) in enumerate(ARMS):
        policy, work = world.policy(), tmp_path / str(number)
        task = world.post_training(policy, gate=gate, term=term, steps=3, term_norms_every=1, **options)
        if number == len(ARMS) - 1:
            monkeypatch.setattr(task, "begin", fails)
        settings = world.settings(validations=1)
        fit(policy, task, settings, work, seed=3, until=2)
        written |= {named(key) for row in (work / "steps.jsonl").read_text().splitlines() for key in json.loads(row)}
    summaries = {one.name for one in fields(GroupSummary)}
    assert summaries - written == {"empty_groups"}  # no group of this world is empty
    section = PAGE.read_text(encoding="utf-8").partition("## What a step says\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)) == written | summaries
