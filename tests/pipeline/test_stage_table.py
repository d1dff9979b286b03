"""The table of stages: what a row is, and what a new one takes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from adagrpo.pipeline import Run, stage_table
from adagrpo.pipeline.stage import MadeFrom, Stage, StageTable
from adagrpo.pipeline.stage_table import STAGES
from adagrpo.pipeline.status import plan, status

PAGE = Path(__file__).parents[2] / "docs" / "contributing.md"


def states(run: Path) -> dict[str, str]:
    return {row["stage"]: row["state"] for row in status(run)["stages"]}


def test_the_stage_of_the_contributing_page_is_made_and_known_to_every_command(
    copied: Path, world: Any, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = PAGE.read_text(encoding="utf-8").partition("## Adding a stage")[2].partition("\n## ")[0]
    declaration, row = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names: dict[str, Any] = {"Stage": Stage}
    exec(declaration, names)
    monkeypatch.setattr(stage_table, "STAGES", StageTable((*STAGES, eval(row, names))))
    assert states(copied)["report/activity"] == "missing"
    assert status(copied)["next"] == f"adagrpo evaluate --run {copied}"
    planned = {row["stage"] for row in plan(Run.open(copied), ["evaluate"])["stages"] if row["state"] == "make"}
    assert planned == {"report/activity"}
    run = Run.open(copied)
    run.evaluate()
    assert run.made == ["report/activity"] and states(copied)["report/activity"] == "done"
    assert json.loads(run.checked("report", "activity", "activity.json").read_text(encoding="utf-8"))["median"] > 3
    world.changed("u00", 0, 3).write(data.parent / "changed")
    world.run(copied, data.parent / "changed").prepare()
    assert states(copied)["report/activity"] == "stale"


def test_every_stage_of_a_recipe_is_of_one_row_and_comes_after_what_it_reads(finished: Path) -> None:
    run = Run.open(finished)
    names = list(run.stages.declared(run.config))
    for name in names:
        assert [row.name for row in STAGES if row.matches(name)][:1] == [getattr(STAGES.row(name), "name", None)]
        made_from = MadeFrom.of(json.loads((finished / name / "manifest.json").read_text(encoding="utf-8")), STAGES)
        assert made_from is not None and {*made_from.sources} <= {*names[: names.index(name)]}
        assert {*made_from.files} == ({"log.csv"} if name == "prepare" else set())
