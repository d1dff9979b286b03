"""A run whose own ranker goes wrong: named before training, and with the ids of the batch while training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adagrpo.console import Silent
from adagrpo.errors import UserError
from adagrpo.pipeline import Run
from adagrpo.report.figures import Log
from adagrpo.report.run_page import write_report
from adagrpo.report.run_tables import failures_table
from adagrpo.rewards.sequential import SequentialRanker
from adagrpo.storage.artifacts import seal
from adagrpo.trainer import Diverged


def spoil(monkeypatch: Any, change: Callable[[Tensor], Tensor], after: int = 0) -> None:
    """Change what rankers answer, but for the first calls."""
    score, calls = SequentialRanker.score, [0]

    def spoiled(self: SequentialRanker, *arguments: Any) -> Tensor:
        calls[0] += 1
        values = score(self, *arguments)
        return change(values) if calls[0] > after else values

    monkeypatch.setattr(SequentialRanker, "score", spoiled)


def nan(values: Tensor) -> Tensor:
    return values * torch.nan


@pytest.mark.parametrize("folds", [0, 2])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (torch.zeros_like, "reward sequential: gives every item of a case the same score"),
        (nan, "reward sequential: the reward .* gave NaN or infinity"),
    ],
)
def test_a_ranker_that_says_nothing_is_named_before_training(
    copied: Path, world: Any, data: Path, monkeypatch: Any, change: Any, message: str, folds: int
) -> None:
    run: Run = world.run(copied, data, ranker={"folds": folds})
    if folds:
        for fold in range(folds):
            folder = copied / "ranker" / f"fold-{fold}"
            shutil.copytree(copied / "ranker" / "best", folder / "best")
            seal(folder, kind=f"ranker/fold-{fold}", fingerprint="")
    monkeypatch.setattr("adagrpo.pipeline.run.check", lambda run, command: None)  # of folds that nobody fitted
    spoil(monkeypatch, change)
    with pytest.raises(UserError, match=message):
        run.train()


def test_a_fit_that_ends_says_whose_batch_it_was(copied: Path, world: Any, data: Path, monkeypatch: Any) -> None:
    """Calls: one for the look, one or two for the first validation, then one a step."""
    changes: dict[str, Any] = {"train": {"arms": [{"objective": "adagrpo"}], "fit": {"validations": 0, "epochs": 2}}}
    run: Run = world.run(copied, data, **changes)
    shutil.rmtree(run.path("train/adagrpo"))
    with monkeypatch.context() as patch:
        spoil(patch, nan, after=5)
        with pytest.raises(Diverged, match="SequentialRanker gave NaN") as caught:
            run.train()
    actual = json.loads(run.path("diverged.json").read_text(encoding="utf-8"))
    assert actual["stage"] == "train/adagrpo" and actual["users"] == caught.value.users
    assert 2 <= len(actual["users"]) <= 16 and all(user.startswith(("u", "short")) for user in actual["users"])
    assert f"{run.path('diverged.json')} has all users" in str(caught.value)
    assert f"up to step {actual['step']}" in str(caught.value) and "\n" not in str(caught.value)

    seen: list[int] = []

    class Steps(Silent):
        def progress(self, label: str, done: int, total: int, values: Any) -> None:
            seen.append(done)

    world.run(copied, data, console=Steps(), **changes).train()
    assert seen[0] == actual["step"] and not run.path("diverged.json").exists()
    rows = [json.loads(line) for line in run.path("train/adagrpo/steps.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "skipped" in row] == [actual["step"] - 2, actual["step"] - 1]

    page = write_report(run.directory).read_text(encoding="utf-8")
    assert "What went wrong while training" in page and "reward: 2" in page


def test_an_arm_that_nothing_happened_to_has_no_row() -> None:
    assert failures_table([Log("nll", [{"step": 1}]), Log("grpo", [{"step": 1, "constant_rewards": 0.0}])]) is None
    table = failures_table([Log("nll", [{"step": 1}]), Log("grpo", [{"step": 1, "empty_groups": 3.0}])])
    assert table is not None and [row[0] for row in table.rows] == ["grpo"] and table.rows[0][5:] == ("3", "–")
