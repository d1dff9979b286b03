"""What a command would do is said before it is done."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from adagrpo.errors import UserError
from adagrpo.lists.table import baselines
from adagrpo.pipeline import Run
from adagrpo.pipeline.directory import events_of
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.status import plan

from ..consoles import Heard


def test_a_finished_run_has_nothing_to_do(finished: Path) -> None:
    content = plan(Run.open(finished, []))
    assert {row["state"] for row in content["stages"]} == {"unchanged"} and content["seconds"] == 0
    steps = {row["stage"]: row["steps"] for row in content["stages"]}
    for stage in ("sft", "ranker", "train/nll", "train/adagrpo"):
        final = json.loads((finished / stage / "final" / "checkpoint.json").read_text(encoding="utf-8"))
        assert steps[stage] == final["step"]
    assert steps["tokenize"] is None
    summary = json.loads((finished / "prepare" / "summary.json").read_text(encoding="utf-8"))
    assert content["data"]["items"] == summary["items"] == 30


def test_what_a_changed_setting_makes_again_and_how_long_it_took_before(finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    run = Run.open(finished, ["train.fit.epochs=2"])
    content = plan(run)
    rows = {row["stage"]: row for row in content["stages"]}
    again = {name for name, row in rows.items() if row["state"] == "make"}
    made = {name for name in rows if name.split("/")[0] in ("train", "evaluate")} | {"report/paired"}
    assert again == made - {"evaluate/sft", *(f"evaluate/{name}" for name in baselines(run.config))}
    took = next(row for row in reversed(events_of(run)) if row["stage"] == "train/nll" and row["event"] == "end")
    assert rows["train/nll"]["seconds"] == pytest.approx(2 * took["seconds"])  # twice the steps
    assert content["seconds"] == pytest.approx(sum(row["seconds"] for row in content["stages"]))
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_a_run_that_is_not_there_yet_is_planned_from_its_logs(world: Any, data: Path, tmp_path: Path) -> None:
    run = world.run(tmp_path / "run", data)
    content = plan(run)
    assert not (tmp_path / "run").exists()
    run.complete()
    later = plan(run)
    assert [(row["stage"], row["steps"]) for row in content["stages"]] == [
        (row["stage"], row["steps"]) for row in later["stages"]
    ]
    assert {row["state"] for row in content["stages"]} == {"make"} and content["seconds"] is None
    assert content["data"] == later["data"]


def test_a_stage_whose_declaration_reads_what_is_not_there_is_to_be_made(copied: Path) -> None:
    """The weight of `distill-tuned` is chosen on validation by a stage of its own."""
    shutil.rmtree(copied / "reranking")
    content = plan(Run.open(copied, ["train.arms=[nll, distill-tuned]"]), ("train",))
    states = [(row["stage"], row["state"]) for row in content["stages"]]
    assert states == [("reranking", "make"), ("train/nll", "unchanged"), ("train/distill-tuned", "make")]


def test_only_trained_arms_are_evaluated(finished: Path) -> None:
    run = Run.open(finished, ["train.arms=[nll, mixture]"])
    content = plan(run, ("evaluate",))
    assert {row["stage"].split("/")[-1] for row in content["stages"]} == {
        *("reranking", "sft", "item_knn", *baselines(run.config), "best", "final"),
        *("report", "paired"),
    }


def test_a_damaged_setting_is_refused_in_a_plan_too(finished: Path) -> None:
    with pytest.raises(UserError, match=r"sft\.epochs"):
        plan(Run.open(finished, ["sft.epochs=none"]))


def test_a_fit_says_its_size(world: Any, data: Path, tmp_path: Path) -> None:
    heard = Heard()
    run: Run = world.run(tmp_path / "run", data, console=heard)
    run.prepare(), run.tokenize(), run.sft()
    parameters = sum(part.numel() for part in Models(RunData(run)).policy().parameters())
    steps = json.loads((tmp_path / "run/sft/final/checkpoint.json").read_text(encoding="utf-8"))["step"]
    assert heard.notes == [f"sft: {parameters:,} parameters, {steps:,} steps"]
    run.sft()
    assert len(heard.notes) == 1
