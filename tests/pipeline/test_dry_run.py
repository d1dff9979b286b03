"""What a command would do is said before it is done, and what the machine has no room for is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adagrpo.config import ArmConfig, Config
from adagrpo.errors import UserError
from adagrpo.pipeline import Run, forecast, room
from adagrpo.pipeline.dry_run import plan
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.forecast import check_language_model
from adagrpo.pipeline.sizes import FitMemory, ModelSize, Shapes, planned_catalog, policy_size, ranker_size
from adagrpo.pipeline.stages import sft
from adagrpo.trainer.processes import Processes

EVERYTHING = ("simulate", "prepare", "tokenize", "sft", "ranker", "train", "evaluate")
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
    before, _ = policy_size(RunData(run), planned_catalog(RunData(run)))
    run.tokenize()
    policy = Models(RunData(run)).policy()
    size, lm = policy_size(RunData(run), planned_catalog(RunData(run)))
    assert size == ModelSize.of(policy) and size.total == sum(part.numel() for part in policy.parameters())
    assert before.total == pytest.approx(size.total, rel=0.05)  # which codes are in use is known afterwards
    assert (size.trained < size.total) == (kind == "lora") and (lm is None) == (kind in ("compact", "hybrid"))
    assert ranker_size(RunData(run)) == ModelSize.of(Models(RunData(run)).ranker())


def test_the_size_of_a_policy_from_a_folder(world: Any, data: Path, tmp_path: Path) -> None:
    first = world.run(tmp_path / "first", data, policy=KINDS["causal_lm"])
    for stage in (Run.prepare, Run.tokenize, Run.sft):
        stage(first)
    folder = str(first.path("sft", "best"))
    run = world.run(tmp_path / "run", data, policy={"kind": "causal_lm", "lm": {"checkpoint": folder}})
    run.prepare(), run.tokenize()
    models = Models(RunData(run))
    assert policy_size(models.data, planned_catalog(models.data))[0] == ModelSize.of(models.policy())


def test_a_finished_run_has_nothing_to_do(finished: Path) -> None:
    content = plan(Run.open(finished, []), EVERYTHING)
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
    content = plan(run, EVERYTHING)
    rows = {row["stage"]: row for row in content["stages"]}
    again = {name for name, row in rows.items() if row["state"] == "make"}
    made = {name for name in rows if name.split("/")[0] in ("train", "evaluate")} | {"report/paired"}
    assert again == made - {"evaluate/sft", "evaluate/baselines"}
    took = next(row for row in reversed(run.events()) if row["stage"] == "train/nll" and row["event"] == "end")
    assert rows["train/nll"]["seconds"] == pytest.approx(2 * took["seconds"])  # twice the steps
    assert content["seconds"] == pytest.approx(sum(row["seconds"] for row in content["stages"]))
    assert content["disk"]["kept"] == 2 * 2 * 4 * content["parameters"]["policy"]["total"]  # best and final, two arms
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_a_run_that_is_not_there_yet_is_planned_from_its_logs(world: Any, data: Path, tmp_path: Path) -> None:
    run = world.run(tmp_path / "run", data)
    content = plan(run, EVERYTHING)
    assert not (tmp_path / "run").exists()
    run.complete()
    later = plan(run, EVERYTHING)
    assert [(row["stage"], row["steps"]) for row in content["stages"]] == [
        (row["stage"], row["steps"]) for row in later["stages"]
    ]
    assert {row["state"] for row in content["stages"]} == {"make"} and content["seconds"] is None
    assert content["data"] == later["data"]


def test_a_stage_whose_declaration_reads_what_is_not_there_is_to_be_made(finished: Path) -> None:
    """The weight of `distill-tuned` is chosen on validation by a stage of its own."""
    content = plan(Run.open(finished, ["train.arms=[nll, distill-tuned]"]), ("train",))
    states = [(row["stage"], row["state"]) for row in content["stages"]]
    assert states == [("train/nll", "unchanged"), ("teacher", "make"), ("train/distill-tuned", "make")]


def test_only_trained_arms_are_evaluated(finished: Path) -> None:
    content = plan(Run.open(finished, ["train.arms=[nll, mixture]"]), ("evaluate",))
    assert {row["stage"].split("/")[1] for row in content["stages"]} == {
        *("sft", "baselines", "nll"),
        *("report", "paired", "rollouts"),
    }


def test_a_damaged_setting_is_refused_in_a_plan_too(finished: Path) -> None:
    with pytest.raises(UserError, match=r"sft\.epochs"):
        plan(Run.open(finished, ["sft.epochs=none"]), EVERYTHING)


def test_memory_of_a_fit_by_hand() -> None:
    """One level of 4 codes, width 2, hidden 3, one layer and head, histories of 2, batches of 5."""
    config = Config.model_validate(
        {
            "data": {"logs": ["x.csv"]},
            "policy": {"width": 2, "layers": 1, "heads": 1, "decoder_hidden": 3},
            "evaluation": {"beam_width": 10, "batch_size": 7},
            "sft": {"batch_size": 5},
            "objective": {"num_generations": 6, "rl_positions": "last"},
        }
    )
    memory = Shapes(config, 9, (4,), 2).policy_fit(ModelSize(100, 60, 400), config.sft, users=50)
    read = 4 * (24 * 2 + 4 * 1 * 2)  # bytes a token
    scored = 4 * (4 * 4 + 6 * 2 + 2 * 3)  # bytes a hypothesis
    assert memory.weights == 2 * 400 and memory.optimizer == 3 * 4 * 60 and memory.groups == 0
    assert memory.activations == 10 * read + 10 * scored
    assert memory.validation == 14 * read + 70 * scored
    arm = Shapes(config, 9, (4,), 2).policy_fit(
        ModelSize(100, 60, 400), config.sft, users=50, arm=ArmConfig.parse("adagrpo")
    )
    assert arm.weights == 3 * 400 and arm.groups == 10 * read + 30 * scored
    assert FitMemory(1, 2, 3, 4, 5).peak == 1 + 2 + 7 and FitMemory(1, 2, 3, 0, 5).peak == 1 + 2 + 5
    assert FitMemory(1, 2, 3, 4, 5, gathered=6).peak == 16 and FitMemory(1, 2, 3, 4, 5, read=11).peak == 11


def test_memory_of_a_process_that_has_a_share_of_a_language_model() -> None:
    """Of 400 bytes 320 are in four layers: what is outside of them, and two layers, are whole in a pass."""
    lm = {"hidden": 2, "inner": 8, "layers": 4, "keys": 2, "vocabulary": 9, "layered": 320}
    recipe = {"data": {"logs": ["x.csv"]}, "policy": {"kind": "causal_lm", "lm": {"config": {"model_type": "qwen3"}}}}
    config = Config.model_validate(recipe)
    shapes, size = Shapes(config, 9, (4,), 2, lm), ModelSize(100, 60, 400)
    arm = ArmConfig.parse("adagrpo")
    whole, part = (shapes.policy_fit(size, config.sft, 50, arm, sharded_by=count) for count in (1, 2))
    assert (part.weights, part.optimizer) == (whole.weights // 2, whole.optimizer // 2)
    assert (part.gathered, part.read) == (2 * (80 + 160), 2 * 400)
    assert (part.activations, part.groups, part.validation) == (whole.activations, whole.groups, whole.validation)
    assert (whole.gathered, whole.read) == (0, 0)
    assert replace(shapes, lm=None).policy_fit(size, config.sft, 50, sharded_by=2).gathered == 0


def test_what_there_is_no_room_for_is_refused_before_it_is_made(
    world: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = world.run(tmp_path / "run", data)
    run.prepare(), run.tokenize()
    monkeypatch.setattr(forecast, "free_memory", lambda device: 1000)
    monkeypatch.setattr(sft, "fit_model", lambda *_, **__: pytest.fail("a policy was fitted"))
    with pytest.raises(UserError, match=r"sft: policy of [0-9,]+ parameters; .* there are 1 kB of memory") as caught:
        run.sft()
    assert "\n" not in str(caught.value) and not run.path("sft").exists()
    monkeypatch.setattr(forecast, "free_memory", lambda device: None)
    monkeypatch.setattr(forecast, "free_disk", lambda folder: 10)
    with pytest.raises(UserError, match="has 10 B left"):
        run.sft()


def test_a_language_model_that_is_too_large_is_refused_before_any_data_are_read(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "free_memory", lambda device: 64 * 10**9)
    lm = {"config": {"model_type": "qwen3"}}
    run = world.run(tmp_path / "run", tmp_path / "nowhere", policy={"kind": "causal_lm", "lm": lm})
    with pytest.raises(UserError, match=r"policy.lm: 10,\d{3},\d{3},\d{3} parameters, .*; there are 64 GB of memory"):
        run.complete()
    assert not run.directory.exists()
    monkeypatch.setattr(forecast, "free_disk", lambda folder: 10**12)
    run.processes = Processes(0, 8)
    with pytest.raises(UserError, match=r"policy.lm: .* take 216 GB of memory with gradients"):
        check_language_model(run)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # which divides it among them
    check_language_model(run)
    monkeypatch.setattr(forecast, "free_memory", lambda device: 30 * 10**9)
    with pytest.raises(UserError, match=r"take 43.* GB of memory in each process with gradients"):  # reads it whole
        check_language_model(run)


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
    monkeypatch.setattr(room, "CGROUP", tmp_path)
    monkeypatch.setattr(room, "_meminfo", lambda name: None)
    assert room.free_memory(torch.device("cpu")) == left


def test_memory_and_disk_of_this_machine(tmp_path: Path) -> None:
    assert room.used_memory(peak=True) >= room.used_memory() > 0
    assert room.free_disk(tmp_path / "not" / "yet") > 0
    assert (room.free_memory(torch.device("cpu")) or 1) > 0


def test_a_fit_says_its_size(world: Any, data: Path, tmp_path: Path) -> None:
    said: list[str] = []

    class Notes:
        def stage(self, name: str, event: str, seconds: float) -> None: ...

        def progress(self, label: str, done: int, total: int, values: Any) -> None: ...

        def note(self, text: str) -> None:
            said.append(text)

    run: Run = world.run(tmp_path / "run", data, console=Notes())
    run.prepare(), run.tokenize(), run.sft()
    parameters = ModelSize.of(Models(RunData(run)).policy()).total
    assert len(said) == 1 and said[0].startswith(f"sft: policy of {parameters:,} parameters; ")
    run.sft()
    assert len(said) == 1
