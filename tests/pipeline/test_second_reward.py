"""What the sequential ranker says of lists that were made, or trained, for another reward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from adagrpo.config import Config
from adagrpo.data.sequences import pad
from adagrpo.pipeline import train
from adagrpo.pipeline.compare import Comparison
from adagrpo.pipeline.models import Workbench
from adagrpo.pipeline.run import Run


@pytest.fixture
def compared(world: Any, data: Path, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    config = Config.model_validate(
        world.recipe(reward={"kind": "noise"}, compare={"margins": {"hr@10": 0.9}, "resamples": 200})
    )
    out = tmp_path / "out"
    return out, Comparison(out, config, data, objectives=["nll", "grpo", "rerank"], seeds=[0]).carry_out()


@pytest.mark.slow
def test_every_list_is_judged_item_by_item(compared: tuple[Path, dict[str, Any]], world: Any, data: Path) -> None:
    out, content = compared
    run = Run(out / "seed-0", Config.model_validate(world.recipe(reward={"kind": "noise"})), data)
    bench = Workbench(run)
    ranker, cases = bench.ranker(run.path("ranker", "best")), bench.cases("test")
    users = pl.read_parquet(run.path("prepare", "users.parquet"))["user_id"].to_list()
    items = pl.read_parquet(run.path("prepare", "items.parquet"))["item_id"].to_list()
    for arm, kind in (("sft", "best"), ("grpo", "final"), ("rerank", "best")):
        folder = run.path("evaluate", arm) if arm != "grpo" else run.path("evaluate", arm, kind)
        lists = pl.read_parquet(folder / "predictions.parquet")
        expected = []
        for place in range(len(cases)):
            history = pad(cases.histories, np.array([place]), bench.config.max_history)
            own = lists.filter((pl.col("user_id") == users[cases.users[place]]) & (pl.col("rank") <= 10))
            rows = torch.tensor([[items.index(item) for item in own["item_id"]]])
            with torch.no_grad():
                expected.append(float(ranker.eval().score(history, rows).mean()))
        row = next(row for row in content["rows"] if (row["arm"], row["checkpoint"]) == (arm, kind))
        assert row["test"]["second_reward@10"]["mean"] == pytest.approx(np.mean(expected), rel=1e-5)
        assert row["test"]["second_reward@10"]["mean"] != row["test"]["mean_reward@10"]["mean"]
        base = next(r for r in content["rows"] if r["arm"] == "nll" and r["checkpoint"] == kind)
        difference = row["test"]["second_reward@10"]["mean"] - base["test"]["second_reward@10"]["mean"]
        assert row["against"]["second_reward@10"]["difference"] == pytest.approx(difference, abs=1e-6)
    assert "second reward@10" in (out / "comparison.md").read_text(encoding="utf-8")


def test_there_is_no_second_where_the_reward_is_of_the_same_family(world: Any, data: Path, tmp_path: Path) -> None:
    mixed = {"kind": "weighted", "weights": [1, 1], "members": [{"kind": "noise"}, {"kind": "sequential"}]}
    for name, reward in (("own", {"kind": "sequential"}), ("mixed", mixed)):
        config = Config.model_validate(
            world.recipe(reward=reward, compare={"margins": {"hr@10": 0.9}, "resamples": 200})
        )
        Comparison(tmp_path / name, config, data, objectives=["nll"], seeds=[0]).carry_out()
        content = json.loads((tmp_path / name / "comparison.json").read_text(encoding="utf-8"))
        assert all("second_reward@10" not in row["test"] for row in content["rows"])
        assert not (tmp_path / name / "seed-0" / "second_reward").exists()


def test_the_gate_agreement_trains_by_a_second_reward(copied: Path, data: Path, world: Any) -> None:
    """Noise agrees with the reward on half of the pairs, the reward with itself on all; each is another training."""
    arms = [{"objective": "adagrpo", "gate": "agreement"}, {"objective": "adagrpo"}]

    def admission(second: dict[str, Any], **objective: Any) -> float:
        run = world.run(copied, data, train={"arms": arms}, second_reward=second, objective=objective)
        (copied / "events.jsonl").unlink()
        train(run)
        rows = [json.loads(line) for line in (copied / "events.jsonl").read_text(encoding="utf-8").splitlines()]
        assert {row["stage"] for row in rows if row["event"] == "end"} == {"train/adagrpo-agreement"}
        steps = run.path("train", "adagrpo-agreement", "steps.jsonl").read_text(encoding="utf-8").splitlines()
        return float(np.mean([json.loads(line)["admission"] for line in steps]))

    itself, half = admission({"kind": "sequential"}), admission({"kind": "noise"})
    assert 0 < half < 0.7 * itself  # what is not admitted under itself has no two items to order
    assert half < admission({"kind": "noise"}, agreement=0.0) == pytest.approx(1 - degenerate(copied))


def degenerate(run: Path) -> float:
    lines = (run / "train" / "adagrpo-agreement" / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    return float(np.mean([json.loads(line)["rejected_degenerate"] for line in lines]))
