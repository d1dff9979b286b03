"""What a command would do is said before it is done, with a warning where the machine has no room for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from adagrpo.errors import UserError
from adagrpo.lists.table import BASELINES
from adagrpo.pipeline import Run, forecast, resources
from adagrpo.pipeline.dry_run import plan
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.forecast import FitForecast, Forecast, ModelSize

from ..consoles import Heard

LM = {"model_type": "qwen3", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
LM |= {"num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 32}
KINDS: dict[str, Any] = {
    "compact": {"kind": "compact"},
    "hybrid": {"kind": "hybrid"},
    "causal_lm": {"kind": "causal_lm", "lm": {"config": LM}},
    "tied": {"kind": "causal_lm", "lm": {"config": LM | {"tie_word_embeddings": True}}},
    "lora": {"kind": "causal_lm", "lm": {"config": LM, "lora_rank": 2, "dtype": "bfloat16"}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_counted_without_making_any(world: Any, data: Path, tmp_path: Path, kind: str) -> None:
    run = world.run(tmp_path / "run", data, policy=KINDS[kind], tokenizer={"collisions": "nearest"})
    run.prepare()
    before = Forecast(RunData(run)).policy
    run.tokenize()
    policy = Models(RunData(run)).policy()
    size = Forecast(RunData(run)).policy
    assert before is not None and size is not None
    assert size == ModelSize.of(policy) and size.total == sum(part.numel() for part in policy.parameters())
    assert before.total == pytest.approx(size.total, rel=0.05)  # which codes are in use is known afterwards
    assert (size.trained < size.total) == (kind == "lora")
    assert Forecast(RunData(run)).ranker == ModelSize.of(Models(RunData(run)).ranker())


def test_the_size_of_a_policy_from_a_folder(world: Any, data: Path, tmp_path: Path) -> None:
    first = world.run(tmp_path / "first", data, policy=KINDS["causal_lm"])
    for stage in (Run.prepare, Run.tokenize, Run.sft):
        stage(first)
    folder = str(first.path("sft", "best"))
    run = world.run(tmp_path / "run", data, policy={"kind": "causal_lm", "lm": {"checkpoint": folder}})
    run.prepare(), run.tokenize()
    assert Forecast(RunData(run)).policy == ModelSize.of(Models(RunData(run)).policy())


def test_a_finished_run_has_nothing_to_do(finished: Path) -> None:
    content = plan(Run.open(finished, []))
    assert {row["state"] for row in content["stages"]} == {"unchanged"} and content["seconds"] == 0
    steps = {row["stage"]: row["steps"] for row in content["stages"]}
    for stage in ("sft", "ranker", "train/nll", "train/adagrpo"):
        final = json.loads((finished / stage / "final" / "checkpoint.json").read_text(encoding="utf-8"))
        assert steps[stage] == final["step"]
    assert steps["tokenize"] is None and content["disk"]["kept"] == 0
    summary = json.loads((finished / "prepare" / "summary.json").read_text(encoding="utf-8"))
    assert content["data"]["items"] == summary["items"] == 30


def test_what_a_changed_setting_makes_again_and_how_long_it_took_before(finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    run = Run.open(finished, ["train.fit.epochs=2"])
    content = plan(run)
    rows = {row["stage"]: row for row in content["stages"]}
    again = {name for name, row in rows.items() if row["state"] == "make"}
    made = {name for name in rows if name.split("/")[0] in ("train", "evaluate")} | {"report/paired"}
    assert again == made - {"evaluate/sft", *(f"evaluate/{name}" for name in BASELINES)}
    took = next(row for row in reversed(run.events()) if row["stage"] == "train/nll" and row["event"] == "end")
    assert rows["train/nll"]["seconds"] == pytest.approx(2 * took["seconds"])  # twice the steps
    assert content["seconds"] == pytest.approx(sum(row["seconds"] for row in content["stages"]))
    assert content["disk"]["kept"] == 2 * 2 * 4 * content["parameters"]["policy"]["total"]  # best and final, two arms
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
    content = plan(Run.open(finished, ["train.arms=[nll, mixture]"]), ("evaluate",))
    assert {row["stage"].split("/")[-1] for row in content["stages"]} == {
        *("reranking", "sft", "item_knn", *BASELINES, "best", "final"),
        *("report", "paired"),
    }


def test_a_damaged_setting_is_refused_in_a_plan_too(finished: Path) -> None:
    with pytest.raises(UserError, match=r"sft\.epochs"):
        plan(Run.open(finished, ["sft.epochs=none"]))


def test_what_a_fit_holds_by_hand() -> None:
    """Two copies of 400 bytes of weights, and 60 trained parameters with a gradient and two moments of 4 bytes each."""
    fit = FitForecast("policy", ModelSize(100, 60, 400), steps=9, copies=2)
    assert (fit.held, fit.kept, fit.passing) == (800 + 720, 800, 2 * (800 + 480))


def test_what_there_is_no_room_for_is_fitted_after_a_warning(
    world: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "free_memory", lambda device: 1000)
    monkeypatch.setattr(forecast, "free_disk", lambda folder: 10)
    heard = Heard()
    run: Run = world.run(tmp_path / "run", data, console=heard)
    run.prepare(), run.tokenize(), run.sft()
    warned = [text for text in heard.notes if "warning" in text]
    assert warned[0].startswith("sft: warning: only 1 kB of memory is free") and "has 10 B left" in warned[1]
    assert len(warned) == 2 and run.path("sft", "best").is_dir()


@pytest.mark.parametrize(
    ("limit", "usage", "left"),
    [("1000\n", "300", 800), ("max\n", "300", None), ("200\n", "300", 0), (f"{2**62}\n", "300", None)],
)
def test_the_limit_of_a_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, usage: str, left: int | None
) -> None:
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text(usage)
    (tmp_path / "memory.stat").write_text("anon 200\ninactive_file 100\n" if limit != "200\n" else "anon 300\n")
    monkeypatch.setattr(resources, "CGROUP", tmp_path)
    monkeypatch.setattr(resources, "_meminfo", lambda name: None)
    assert resources.free_memory(torch.device("cpu")) == left


def test_memory_and_disk_of_this_machine(tmp_path: Path) -> None:
    assert resources.free_disk(tmp_path / "not" / "yet") > 0
    assert (resources.free_memory(torch.device("cpu")) or 1) > 0


def test_a_fit_says_its_size(world: Any, data: Path, tmp_path: Path) -> None:
    heard = Heard()
    run: Run = world.run(tmp_path / "run", data, console=heard)
    run.prepare(), run.tokenize(), run.sft()
    parameters = ModelSize.of(Models(RunData(run)).policy()).total
    assert len(heard.notes) == 1 and heard.notes[0].startswith(f"sft: policy of {parameters:,} parameters; ")
    run.sft()
    assert len(heard.notes) == 1
