from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from adagrpo.console import Silent
from adagrpo.data.prepared import load_item_ids
from adagrpo.errors import UserError
from adagrpo.pipeline import (
    Run,
)
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.make import make
from adagrpo.pipeline.stages import fit_policy

Contents = Callable[[Path], dict[str, bytes]]


class Killed(Exception):
    """Stands for whatever ends a process."""


class Killer(Silent):
    """A console that ends the run when a label has gone some steps."""

    def __init__(self, label: str, step: int) -> None:
        self.label, self.step = label, step

    def progress(self, label: str, done: int, total: int, values: Mapping[str, float]) -> None:
        if (label, done) == (self.label, self.step):
            assert done < total
            raise Killed


def events(directory: Path) -> list[tuple[str, str]]:
    rows = (json.loads(line) for line in (directory / "events.jsonl").read_text(encoding="utf-8").splitlines())
    return [(row["stage"], row["event"]) for row in rows]


def made(directory: Path) -> set[str]:
    return {stage for stage, event in events(directory) if event == "end"}


STAGES = [
    "prepare",
    "vectors",
    "tokenize",
    "sft",
    "ranker",
    "train/nll",
    "train/adagrpo",
    "reranking",
    "item_knn",
    "evaluate/sft",
    "evaluate/popularity",
    "evaluate/item_knn",
    "evaluate/user_knn",
    "evaluate/ranker",
] + [f"evaluate/{arm}/{kind}" for arm in ("nll", "adagrpo") for kind in ("best", "final")]
STAGES += ["report/paired", "ranker/report"]


def test_every_stage_is_made_once_in_order(finished: Path) -> None:
    # beside starts and ends, sentences on what a stage met
    found = [(stage, event) for stage, event in events(finished) if " " not in event]
    assert found == [(stage, event) for stage in STAGES for event in ("start", "end")]
    assert (finished / "report.html").is_file() and not list((finished / ".work").iterdir())
    described = yaml.safe_load((finished / "run.yaml").read_text(encoding="utf-8"))
    keys = {"config", "arms", "config_hash", "data_directory", "data", "threads", "versions", "reward", "outputs"}
    assert set(described) == keys | {"collected", "sha256"}
    metrics = json.loads((finished / "metrics.json").read_text(encoding="utf-8"))
    assert described["config_hash"] == metrics["config_hash"] and list(described["data"]) == ["log.csv"]


def test_a_second_run_skips_everything(copied: Path, data: Path, world: Any, contents: Contents) -> None:
    before = contents(copied)
    (copied / "events.jsonl").unlink()
    world.run(copied, data).complete()
    assert events(copied) == [(stage, "skip") for stage in STAGES]
    assert contents(copied) == before


def test_runs_in_different_places_are_equal(finished: Path, world: Any, tmp_path: Path, contents: Contents) -> None:
    """Killed twice on the way, in sft and in post-training, and continued by the same command."""
    world.write(tmp_path / "elsewhere" / "data")
    arguments = (tmp_path / "run", tmp_path / "elsewhere" / "data")
    for label, step in (("sft", 3), ("adagrpo", 2)):
        with pytest.raises(Killed):
            world.run(*arguments, console=Killer(label, step)).complete()
        assert not (tmp_path / "run" / "metrics.json").exists()
    world.run(*arguments).complete()
    assert contents(tmp_path / "run") == contents(finished)
    started = [stage for stage, event in events(tmp_path / "run") if event == "start"]
    assert started.count("sft") == started.count("train/adagrpo") == 2 and started.count("ranker") == 1


def test_a_kill_before_any_checkpoint_starts_the_fit_over(
    copied: Path, data: Path, world: Any, contents: Contents
) -> None:
    before = contents(copied)
    rarely = {"sft": {"checkpoint_seconds": 1000}}
    shutil.rmtree(copied / "sft")
    with pytest.raises(Killed):
        world.run(copied, data, console=Killer("sft", 2), **rarely).sft()
    world.run(copied, data, **rarely).sft()
    assert contents(copied) == before


@pytest.mark.parametrize(
    "name",
    ["prepare/train.parquet", "tokenize/codes.parquet", "sft/best/model.safetensors", "evaluate/sft/free.parquet"],
)
def test_a_changed_byte_is_refused_by_name(copied: Path, data: Path, world: Any, name: str) -> None:
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        world.run(copied, data).complete()


def test_a_changed_input_is_refused_by_a_single_stage(copied: Path, data: Path, world: Any) -> None:
    content = bytearray((copied / "tokenize" / "codes.json").read_bytes())
    content[-3] ^= 1
    (copied / "tokenize" / "codes.json").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenize/codes\.json: content differs"):
        world.run(copied, data).sft()


def test_every_arm_needs_the_ranker(copied: Path, data: Path, world: Any) -> None:
    (copied / "ranker").rename(copied / "gone")
    shutil.rmtree(copied / "train")
    run: Run = world.run(copied, data)
    for arm in run.config.train.arms:
        with pytest.raises(UserError, match=r"ranker/best/model\.safetensors: missing; run `adagrpo ranker"):
            run.stage(f"train/{arm.name}")


def test_weights_of_another_model_are_refused(copied: Path, data: Path, world: Any) -> None:
    run: Run = world.run(copied, data, policy={"width": 32})
    with pytest.raises(
        UserError, match=r"sft is stale: made with policy\.width=16, the recipe says 32; run `adagrpo sft"
    ):
        run.stage(f"train/{run.config.train.arms[0].name}")
    with pytest.raises(UserError, match=r"sft/best: made with other data or model settings"):
        make(run, "train/nll", fit_policy.train_arm(run, run.config.train.arms[0]))  # nothing checked before


def test_impressions_need_a_clicked_column(copied: Path, data: Path, world: Any) -> None:
    with pytest.raises(UserError, match=r"ranker\.loss: impressions needs a clicked column"):
        world.run(copied, data, ranker={"loss": "impressions"}).complete()


def test_a_log_without_test_cases_is_refused(world: Any, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\na,1,1\na,2,2\nb,2,1\nb,1,2\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"no validation case; users need three interactions"):
        world.run(tmp_path / "run", tmp_path).complete()


def test_logs_of_one_name_are_both_in_the_description(world: Any, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for name in ("old", "new"):
        world.write(folder / name)
    run: Run = world.run(tmp_path / "run", folder, data={"logs": ["old/log.csv", "new/log.csv"]})
    run.prepare()
    assert set(yaml.safe_load(run.path("run.yaml").read_text())["data"]) == {"old/log.csv", "new/log.csv"}


def test_a_temporal_split(world: Any, tmp_path: Path, data: Path) -> None:
    split = {"split": {"kind": "temporal", "validation_from": 1050, "test_from": 1060}}
    run: Run = world.run(tmp_path / "run", data, data=split, train={"arms": [{"objective": "nll"}]})
    run.complete()
    content = run.results
    longest = sum(len(sequence) > 6 for sequence in world.sequences.values())
    assert content["dataset"]["test_cases"] == longest and content["dataset"]["validation_cases"] == 60
    assert pl.read_parquet(run.path("prepare", "train.parquet"))["position"].max() == 4


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (
            (1000, 1060),
            r"data\.split\.validation_from: no interaction is before 1000; the times of .* are 1000 to 1080",
        ),
        (
            (1700000000, 1700000060),
            r"no user .* has an interaction from 1700000000 and before 1700000060 .* 1000 to 10",
        ),
    ],
)
def test_a_cut_beside_the_times_of_the_log_is_refused(
    world: Any, tmp_path: Path, data: Path, points: tuple[int, int], message: str
) -> None:
    split = {"split": {"kind": "temporal", "validation_from": points[0], "test_from": points[1]}}
    with pytest.raises(UserError, match=message):
        world.run(tmp_path / "run", data, data=split).prepare()


@pytest.mark.parametrize("unit", [1, 1000])
def test_points_in_time_may_be_dates(world: Any, tmp_path: Path, unit: int) -> None:
    """Whatever the unit of the log is; where it is not known a date says nothing."""
    data, start = tmp_path / "logs", 1_700_000_000  # 2023-11-14T22:13:20Z
    log = world.write(data)
    rows = pl.read_csv(log)
    time = rows.columns[-1]
    rows.with_columns((pl.col(time) - 1000 + start) * unit).write_csv(log)
    dates = {"kind": "temporal", "validation_from": "2023-11-14T22:14:10", "test_from": "2023-11-15T00:14:20+02:00"}
    numbers = dates | {"validation_from": (start + 50) * unit, "test_from": (start + 60) * unit}
    for name, split in (("dates", dates), ("numbers", numbers)):
        world.run(tmp_path / name, data, data={"split": split}).prepare()
    found = [tmp_path / name / "prepare" for name in ("dates", "numbers")]
    for name in ("train.parquet", "validation.parquet", "test.parquet"):
        first, second = (pl.read_parquet(folder / name) for folder in found)
        assert first.equals(second) and first.height
    rows.write_csv(log)  # times of about 1,000
    with pytest.raises(UserError, match=r"data\.split\.validation_from: .* is a date, and of which unit the times"):
        world.run(tmp_path / "unknown", data, data={"split": dates}).prepare()


def test_a_split_without_a_test_case_is_refused_before_training(world: Any, tmp_path: Path, data: Path) -> None:
    split = {"kind": "temporal", "validation_from": 1050, "test_from": 1060_000}  # the one in another unit
    run = world.run(tmp_path / "run", data, data={"split": split})
    with pytest.raises(UserError, match=r"test_from: no user .* at or after 1060000 to be .* the last .* is 1080$"):
        run.complete()
    assert made(run.directory) == {"prepare"}


def test_published_ids_are_taken_over(world: Any, tmp_path: Path, data: Path, copied: Path) -> None:
    codes = [[index // 6, index % 6] for index in range(30)]
    table = pl.DataFrame({"item_id": [10 * index + 3 for index in range(30)], "sid": codes}).reverse()
    table.write_parquet(data / "ids.parquet")
    run: Run = world.run(copied, data, tokenizer={"published": {"path": "ids.parquet", "column": "sid"}})
    run.tokenize()
    taken = pl.read_parquet(run.path("tokenize", "codes.parquet"))["codes"].to_list()
    assert taken == [codes[(item - 3) // 10] for item in load_item_ids(run.path("prepare"))]


def test_true_utility_is_that_of_the_moment_of_the_target(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut by time, most targets are not the last purchase of their user; what was bought is worth something then."""
    run = world.run(
        tmp_path / "run",
        tmp_path,
        data={
            "logs": [],
            "marketplace": {"users": 80, "items": 100},
            "split": {"kind": "temporal", "validation_from": 40, "test_from": 45},
        },
    )
    run.stage("simulate")
    run.prepare()
    data = RunData(run)
    cases = data.cases("test")
    utility = data.utility_at(cases)
    assert utility is not None and len(cases) > 20
    logged = cases.targets.astype(np.int64)[:, None]
    assert (utility(logged) > 0).all()
    at_the_end = data.truth().utility(cases.users.astype(np.int64), logged)
    assert (at_the_end == 0).mean() > 0.5  # bought before the last purchase, so owned by then
    grown = property(lambda self: self.version.trained + 1)  # an item came after the simulation: no truth knows it
    monkeypatch.setattr(RunData, "num_items", grown)
    assert data.utility_at(cases) is None


@pytest.mark.slow
def test_a_marketplace_is_simulated_and_its_truth_is_read_by_evaluation_alone(world: Any, tmp_path: Path) -> None:
    run = world.run(
        tmp_path / "run",
        tmp_path,
        data={"logs": [], "marketplace": {"users": 80, "items": 100}},
        train={"arms": [{"objective": "adagrpo"}]},
    )
    run.complete()
    content = run.results
    assert content["ranker"]["loss"] == "impressions"
    assert content["stages"]["sft"]["test"]["true_utility@10"] >= 0
    assert "true_utility@10" not in content["stages"]["sft"]["validation"]
    run.path("simulate", "truth").rename(tmp_path / "truth")
    run.path("events.jsonl").unlink()
    run.stage(f"train/{run.config.train.arms[0].name}")
    assert events(run.directory) == [("train/adagrpo", "skip")]
    (tmp_path / "truth").rename(run.path("simulate", "truth"))
    run.evaluate()
    assert run.results == content


def shown_log(folder: Path, shown: str) -> None:
    """Nine users with five interactions of which no impression was logged, and what `shown` holds beside them."""
    rows = "".join(f"u{user},i{(user + place) % 7},{place},,\n" for user in range(9) for place in range(5))
    (folder / "log.csv").write_text("user_id,item_id,timestamp,clicked,slot\n" + rows + shown, encoding="utf-8")


IMPRESSIONS = {"columns": {"clicked": "clicked", "slot": "slot"}}


@pytest.mark.parametrize(
    ("shown", "counts"),
    [
        ("u0,i1,100,0,\n", "of 0 impressions in training 0 come"),  # after all that is learned from
        ("u0,i3,0,0,\nu1,i4,0,0,\n", "of 2 impressions in training 0 come"),  # before the first interaction
        ("u0,i4,1,0,\nu1,i5,1,0,\n", "of 2 impressions in training 2 come"),
    ],
)
def test_a_ranker_with_nothing_to_learn_a_click_from_is_refused(
    world: Any, tmp_path: Path, shown: str, counts: str
) -> None:
    shown_log(tmp_path, shown)
    run = world.run(tmp_path / "run", tmp_path, data=IMPRESSIONS)
    run.prepare()
    with pytest.raises(UserError, match=rf"^ranker\.loss: {counts} .* there is nothing to learn from") as error:
        run.ranker()
    assert "\n" not in str(error.value)


def test_a_column_of_slots_may_be_empty(world: Any, tmp_path: Path) -> None:
    shown_log(tmp_path, "u0,i4,1,0,\nu1,i2,1,1,\nu1,i6,7,,\n")
    run = world.run(tmp_path / "run", tmp_path, data=IMPRESSIONS)
    run.prepare()
    assert RunData(run).slots == 1
    run.ranker()
