"""Post-training whose rollouts an engine draws: it reads the policy's weights when they move, and is found out."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from adagrpo.config import Config, read_settings
from adagrpo.errors import ServiceError, UserError
from adagrpo.groups.served_draw import RolloutWorker
from adagrpo.networks.layers import autocast_dtype
from adagrpo.pipeline import Run
from adagrpo.pipeline.export import export
from adagrpo.pipeline.rollout_engine import rollout_worker
from adagrpo.report import read_rows

from .fake_engines import Served, served

LM = {"model_type": "qwen3", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
LM |= {"num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 32}
POLICY = {"kind": "causal_lm", "lm": {"config": LM}}
OBJECTIVE = {"num_generations": 4, "rollout": "sample", "constrained": True}


# how far a worker with the policy's weights may be off; in bfloat16, where the processor has it, they were by .004
SAME = 1e-4 if autocast_dtype(torch.device("cpu")) is None else 2e-2


@pytest.fixture(scope="module")
def started(world: Any, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run with a starting policy and a ranker, and the export that an engine serves at first."""
    folder = tmp_path_factory.mktemp("started")
    run = world.run(folder / "run", data, policy=POLICY, tokenizer={"collisions": "nearest"})
    run.prepare(), run.tokenize(), run.sft(), run.ranker()
    export(run, folder / "exported", "sft")
    return run.directory, folder / "exported"


@contextmanager
def engine(exported: Path, seen: list[str]) -> Iterator[Served]:
    """A server that begins with an export and reads what it is told to."""
    state: dict[str, Any] = {}

    def read(folder: str) -> None:
        seen.append(folder)
        state["lm"] = AutoModelForCausalLM.from_pretrained(folder).eval()

    @torch.no_grad()
    def model(tokens: list[int]) -> torch.Tensor:
        logits: torch.Tensor = state["lm"](torch.tensor([tokens])).logits[0, -1]
        return logits.clone()

    read(str(exported))
    seen.clear()
    sys.path.insert(0, str(exported))
    try:
        processor = importlib.import_module("catalog_engines.sglang_processor").CatalogLogitProcessor()
        with served(model, lambda: None, processor, update=read) as server:
            yield server
    finally:
        sys.path.remove(str(exported))
        for name in [name for name in sys.modules if name.split(".")[0] == "catalog_engines"]:
            del sys.modules[name]


def trained(world: Any, data: Path, started: tuple[Path, Path], to: Path, url: str, **worker: Any) -> Run:
    """The arm `mixture`, in a run of its own that goes on from the started one."""
    options = {"url": url, "folder": str(to), "timeout_seconds": 30} | worker
    train = {"arms": [{"objective": "mixture"}], "rollout_worker": options, "fit": {"epochs": 0.75, "validations": 1}}
    recipe = world.recipe(policy=POLICY, tokenizer={"collisions": "nearest"}, objective=OBJECTIVE, train=train)
    run = Run(to / "run", Config.model_validate(recipe), data, source=started[0])
    run.stage(f"train/{run.config.train.arms[0].name}")
    return run


@pytest.mark.slow
def test_an_engine_draws_the_groups_of_an_arm_with_the_weights_of_each_step(
    world: Any, data: Path, started: tuple[Path, Path], tmp_path: Path
) -> None:
    updates: list[str] = []
    with engine(started[1], updates) as server:
        run = trained(world, data, started, tmp_path, server.url)
        drawn = [body for path, body in server.requests if path == "/generate"]
    steps = list(read_rows(run.path("train", "mixture", "steps.jsonl")))
    assert len(steps) >= 3 and len(updates) == len(steps) == len(set(updates))
    assert all(row["rollout_drift_largest"] < SAME for row in steps)  # the worker had the weights of that step
    assert all(row["rollout_drift"] <= row["rollout_drift_largest"] for row in steps)
    assert {len(body["input_ids"]) for body in drawn} == {OBJECTIVE["num_generations"]}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # what was handed over is gone again
    about = json.loads(run.path("train", "mixture", "manifest.json").read_text(encoding="utf-8"))
    assert "worker" in json.dumps(about) and server.url not in json.dumps(about)


@pytest.mark.slow
def test_weights_that_are_a_step_old_drift_and_too_much_of_it_ends_the_fit(
    world: Any, data: Path, started: tuple[Path, Path], tmp_path: Path
) -> None:
    updates: list[str] = []
    with engine(started[1], updates) as server:
        run = trained(world, data, started, tmp_path, server.url, every=2)
        drifts = [row["rollout_drift_largest"] for row in read_rows(run.path("train", "mixture", "steps.jsonl"))]
        assert len(updates) == (len(drifts) + 1) // 2
        assert all(drift < SAME for drift in drifts[::2]) and all(drift > SAME for drift in drifts[1::2])
        (tmp_path / "strict").mkdir()
        with pytest.raises(ServiceError, match=r"off by .* a code, more than 1e-12; does it serve this policy\?"):
            trained(world, data, started, tmp_path / "strict", server.url, every=2, most_drift=1e-12)


def test_the_weights_are_handed_over_when_they_have_moved_and_it_is_time() -> None:
    given: list[float] = []
    policy = torch.nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.1)
    worker = RolloutWorker(SimpleNamespace(), lambda one: given.append(float(one.weight.detach())), every=2)  # type: ignore[arg-type]

    def step() -> None:
        policy(torch.ones(1, 1)).sum().backward()
        optimizer.step()

    for moves in (False, False, True, True, False, True):
        if moves:
            step()
        worker.follow(policy)
    # at first; not while it stands still; then a draw after it moved, and another two draws later
    assert len(given) == 3 and len(set(given)) == 3
    assert worker.told() == {}


def test_how_old_the_weights_of_a_draw_may_be_decides_the_arm(
    world: Any, data: Path, started: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[dict[str, Any]] = []
    monkeypatch.setattr(
        Run, "stage", lambda run, name, *, reads, **given: read.append(read_settings(run.config, reads))
    )
    for options in ({}, {"every": 4}, {"concurrency": 2, "most_drift": 0.1}):
        trained(world, data, started, tmp_path, "http://127.0.0.1:1", **options)
    assert read[0] == read[2] and read[1] == read[0] | {"train.rollout_worker.every": 4}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"folder": "nowhere"}, "train.rollout_worker.folder: nowhere is no folder"),
        ({"token_env": "NO_SUCH_TOKEN"}, "the environment variable NO_SUCH_TOKEN is not set"),
    ],
)
def test_what_a_worker_lacks_is_said_before_anything_is_trained(
    world: Any, data: Path, started: tuple[Path, Path], tmp_path: Path, changes: dict[str, str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        trained(world, data, started, tmp_path, "http://127.0.0.1:1", **changes)
    assert not (tmp_path / "run" / "train").exists()


def test_sharded_weights_are_not_handed_over(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adagrpo.pipeline.rollout_engine.is_asked_for", lambda: True)
    options = {"url": "http://127.0.0.1:1", "folder": str(tmp_path)}
    recipe = world.recipe(policy=POLICY, objective=OBJECTIVE, train={"arms": ["nll"], "rollout_worker": options})
    run: Any = SimpleNamespace(config=Config.model_validate(recipe), processes=SimpleNamespace(count=2))
    with pytest.raises(UserError, match="not with sharded weights"):
        rollout_worker(run)
