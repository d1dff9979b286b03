"""Groups in which no rollout names an item: counted and said, never a crash; an arm that comes to draw only those."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adagrpo.groups import draw
from adagrpo.pipeline import Run
from adagrpo.pipeline.directory import events_of, locked
from adagrpo.report.page import read_rows
from adagrpo.storage.artifacts import remove_artifact

from ..consoles import Heard

ENDS = {"rl_positions": "end", "rollout": "beam", "num_generations": 8, "exclude_history": True}
DISTILL = ENDS | {"distill": {"reward_weight": 1.0, "validity_weight": 5.0, "mass_weight": 1.0}}
ARMS: list[dict[str, Any]] = [
    {"objective": "grpo"},
    {"objective": "mixture"},
    {"objective": "adagrpo"},
    {"objective": "adagrpo", "gate": "random"},
    {"objective": "adagrpo", "gate": "shuffled"},
    {"objective": "best_of_n"},
    {"objective": "distill", "name": "ends", "options": DISTILL},
    {"objective": "mixture", "name": "ends-grpo", "options": ENDS | {"grpo": {"beta": 0.1}}},
]


def emptied(monkeypatch: pytest.MonkeyPatch, after: int = 0) -> None:
    """From a draw on, no rollout names an item."""
    calls = [0]

    def none(own: Any, *arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        drawn = own(*arguments, **options)
        return drawn._replace(items=torch.full_like(drawn.items, -1)) if calls[0] > after else drawn

    for name in ("beam_rollouts", "draw_rollouts"):
        monkeypatch.setattr(draw, name, partial(none, getattr(draw, name)))


@pytest.mark.slow  # every objective is trained
def test_every_objective_and_report_gets_by_without_a_single_item(
    copied: Path, world: Any, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove_artifact(copied / "train" / "adagrpo")
    remove_artifact(copied / "ranker" / "report")
    heard = Heard()
    arms = {"arms": ARMS, "fit": {"validations": 1}}
    run: Run = world.run(copied, data, console=heard, train=arms)
    emptied(monkeypatch)
    with locked(run):
        run.train()
        run.evaluate()
        run.stage("ranker/report")
        run.diagnose()
    for arm in run.config.train.arms:
        rows = read_rows(run.path("train", arm.name, "steps.jsonl"))
        assert sum(row["empty_groups"] for row in rows) == 62  # users, each with a group in the one epoch
        assert all(row["admission"] == 0 and row["rejected_degenerate"] == 1 for row in rows if "admission" in row)
        weights = load_file(run.path("train", arm.name, "final", "model.safetensors"))
        assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
        said = [event for name, event in heard.stages if name == f"train/{arm.name}" and "named no item" in event]
        assert len(said) == 1 and "of step 1 named no item and taught nothing" in said[0]


def test_an_arm_that_loses_its_policy_is_stopped_named_and_marked(
    copied: Path, world: Any, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()
    arms = {"arms": [{"objective": "nll"}, {"objective": "mixture"}], "fit": {"epochs": 2, "validations": 1}}
    run: Run = world.run(copied, data, console=heard, train=arms)
    with monkeypatch.context() as patch, locked(run):
        emptied(patch, after=1)
        run.stage(f"train/{run.config.train.arms[0].name}")
        run.stage(f"train/{run.config.train.arms[1].name}")
    # the first step has items, the next three have none
    lost = json.loads(run.path("train", "mixture", "lost.json").read_text(encoding="utf-8"))
    assert lost["step"] == 4 and lost["why"].endswith("to 0.0 %")
    assert len(read_rows(run.path("train", "mixture", "steps.jsonl"))) == 4
    assert len(read_rows(run.path("train", "nll", "steps.jsonl"))) > 4
    (said,) = [event for name, event in heard.stages if name == "train/mixture" and "lost its policy" in event]
    assert said == f"lost its policy at step 4: {lost['why']}; stopped; its best checkpoint is kept"
    assert any(row["event"] == said for row in events_of(run))

    with locked(run):
        run.complete()
    metrics, page = run.results, run.path("report.html")
    empty = sum(row.get("empty_groups", 0) for row in read_rows(run.path("train", "mixture", "steps.jsonl")))
    assert metrics["stages"]["mixture"]["lost"] == lost
    assert metrics["stages"]["mixture"]["events"] == {"empty_groups": empty} and empty >= 3 * 14
    assert "lost" not in metrics["stages"]["nll"] and "events" not in metrics["stages"]["nll"]
    text = page.read_text(encoding="utf-8")
    assert "groups without an item" in text and f"step 4: {lost['why']}" in text
