"""Nothing but the evaluation of a test item may depend on it, and nothing but selection on a validation item."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adagrpo.pipeline import Run

Contents = Callable[[Path], dict[str, bytes]]
USER = "u17"
POPULAR = 143  # an item


def other_item(world: Any) -> int:
    """An item that the user never had; other users have it in training."""
    return next(item for item in range(3, 300, 10) if item not in world.sequences[USER])


def best_step(directory: Path, fit: str) -> int:
    return int(json.loads((directory / fit / "best/checkpoint.json").read_text(encoding="utf-8"))["step"])


def test_a_test_item_reaches_test_parquet_and_evaluation_alone(
    finished: Path, world: Any, tmp_path: Path, contents: Contents
) -> None:
    changed_world = world
    for user, sequence in world.sequences.items():  # of everyone, so that any count of items would be seen to change
        if len(sequence) >= 3:
            changed_world = changed_world.changed(user, -1, POPULAR)
    changed_world.write(tmp_path / "data")
    world.run(tmp_path / "run", tmp_path / "data").complete()
    before, after = contents(finished), contents(tmp_path / "run")
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    # the manifest of prepare holds the hashes of the log and of test.parquet, and nothing reads it but to check them
    assert {name for name in changed if not name.startswith(("evaluate/", "report/paired/"))} == {
        "prepare/test.parquet",
        "prepare/manifest.json",
        "metrics.json",
    }
    assert not [name for name in changed if name.endswith(("predictions.parquet", "free.parquet"))]
    old, new = json.loads(before["metrics.json"]), json.loads(after["metrics.json"])
    assert old["stages"]["sft"]["validation"] == new["stages"]["sft"]["validation"]
    for name, splits in old["baselines"].items():
        assert splits["validation"] == new["baselines"][name]["validation"]
    evaluated = ("stages", "ranker", "baselines")
    assert {name: old[name] for name in old if name not in evaluated} == {
        name: new[name] for name in new if name not in evaluated
    }


def test_a_validation_item_is_selected_by_and_not_trained_on(
    finished: Path, world: Any, tmp_path: Path, contents: Contents
) -> None:
    world.changed(USER, -2, other_item(world)).write(tmp_path / "data")
    run = world.run(tmp_path / "run", tmp_path / "data")
    for stage in (Run.prepare, Run.tokenize, Run.sft, Run.ranker, Run.train):
        stage(run)
    before = contents(finished)
    after = {path: (run.directory / path).read_bytes() for path in before if (run.directory / path).is_file()}
    for fit in ("sft", "ranker"):  # what comes after starts from the best, so this must be the same one
        assert best_step(finished, fit) == best_step(run.directory, fit) > 0
    changed = {name for name in after if before[name] != after[name]}
    assert {"prepare/validation.parquet", "ranker/validation.jsonl"} <= changed
    same = ["prepare/users.parquet", "prepare/items.parquet", "prepare/train.parquet", "prepare/test.parquet"]
    same += ["tokenize/codes.parquet", "tokenize/codes.json", "tokenize/audit.json", "tokenize/manifest.json"]
    for fit in ("sft", "ranker", "train/nll", "train/adagrpo"):
        same += [f"{fit}/final/model.safetensors", f"{fit}/steps.jsonl"]
    assert set(same) <= after.keys() and not changed & set(same)
