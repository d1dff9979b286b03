from __future__ import annotations

import csv
import json
import math
import shutil
import sys
from collections import defaultdict
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from adagrpo.console import Silent
from adagrpo.pipeline.stages.evaluate import _command

CHECKPOINTS = ["sft", "nll/best", "nll/final", "adagrpo/best", "adagrpo/final"]


@pytest.fixture(scope="module")
def metrics(finished: Path) -> dict[str, Any]:
    return dict(json.loads((finished / "metrics.json").read_text(encoding="utf-8")))


def entry(metrics: dict[str, Any], checkpoint: str) -> dict[str, Any]:
    result = metrics["stages"]
    for name in checkpoint.split("/"):
        result = result[name]
    return dict(result)


def raw_targets(log: Path) -> dict[str, int]:
    """The last item of every user with three interactions or more, from the log alone."""
    by_user = defaultdict(list)
    with log.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            by_user[row["user_id"]].append((int(row["timestamp"]), int(row["item_id"])))
    return {user: max(rows)[1] for user, rows in by_user.items() if len(rows) >= 3}


def test_metrics_have_the_promised_form(metrics: dict[str, Any]) -> None:
    assert list(metrics["stages"]) == ["sft", "nll", "adagrpo"]
    assert len(metrics["config_hash"]) == 64
    for checkpoint in CHECKPOINTS:
        for split in ("validation", "test"):
            values = entry(metrics, checkpoint)[split]
            assert {"hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10", "hallucination@10", "coverage@10"} <= set(values)
            rates = {name: value for name, value in values.items() if name != "mean_reward@10"}
            assert all(0 <= value <= 1 for value in rates.values()), rates
            assert values["hr@1"] <= values["hr@5"] <= values["hr@10"]
    assert metrics["stages"]["adagrpo"]["objective"] == metrics["stages"]["adagrpo"]["gate"] == "adagrpo"
    assert 0 < metrics["stages"]["adagrpo"]["admission"] < 1
    assert metrics["stages"]["nll"]["gate"] is None and metrics["stages"]["nll"]["admission"] is None


def test_the_policy_has_learnt_something(metrics: dict[str, Any], finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "sft/validation.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows[0]["step"] == 0 and rows[-1]["ndcg@10"] > rows[0]["ndcg@10"]
    assert entry(metrics, "sft")["test"]["hr@10"] > 10 / 30  # what chance gives


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_metrics_follow_from_the_lists_and_the_log(
    metrics: dict[str, Any], finished: Path, data: Path, checkpoint: str
) -> None:
    folder, targets = finished / "evaluate" / checkpoint, raw_targets(data / "log.csv")
    lists = pl.read_parquet(folder / "predictions.parquet")
    free = pl.read_parquet(folder / "free.parquet")
    assert lists.columns == ["user_id", "rank", "item_id", "score"]
    assert free.columns == ["user_id", "rank", "codes", "valid"]
    ranked: dict[str, dict[int, int]] = defaultdict(dict)
    for user, rank, item, _ in lists.iter_rows():
        ranked[user][rank] = item
    valid: dict[str, dict[int, bool]] = defaultdict(dict)
    for user, rank, _, names in free.iter_rows():
        valid[user][rank] = names
    assert set(ranked) == set(valid) == set(targets)
    assert all(sorted(ranks) == list(range(1, 11)) for ranks in (*ranked.values(), *valid.values()))
    hits, gains, invalid = [], [], []
    for user, target in targets.items():
        rank = next((rank for rank, item in sorted(ranked[user].items()) if item == target), None)
        hits.append(rank is not None)
        gains.append(0.0 if rank is None else 1 / math.log2(1 + rank))
        invalid.append(sum(not valid[user][rank] for rank in range(1, 11)) / 10)
    with (data / "log.csv").open(encoding="utf-8") as file:
        catalogue = {int(row["item_id"]) for row in csv.DictReader(file)}
    shown = {item for items in ranked.values() for item in items.values()}
    assert shown <= catalogue
    values = entry(metrics, checkpoint)["test"]
    assert values["hr@10"] == pytest.approx(sum(hits) / len(hits), rel=0, abs=1e-12)
    assert values["ndcg@10"] == pytest.approx(math.fsum(gains) / len(gains), rel=0, abs=1e-12)
    assert values["hallucination@10"] == pytest.approx(math.fsum(invalid) / len(invalid), rel=0, abs=1e-12)
    assert values["coverage@10"] == pytest.approx(len(shown) / len(catalogue), rel=0, abs=1e-12)


def test_valid_is_what_the_catalogue_says(finished: Path) -> None:
    codes = pl.read_parquet(finished / "tokenize/codes.parquet")["codes"].to_list()
    known = {tuple(sequence) for sequence in codes}
    free = pl.read_parquet(finished / "evaluate/adagrpo/final/free.parquet")
    assert free["valid"].to_list() == [tuple(sequence) in known for sequence in free["codes"].to_list()]
    assert free["valid"].any() and not free["valid"].all()


def test_scores_descend_and_no_item_is_listed_twice(finished: Path) -> None:
    lists = pl.read_parquet(finished / "evaluate/sft/predictions.parquet")
    for _, part in lists.group_by("user_id"):
        assert part.sort("rank")["score"].is_sorted(descending=True) and part["item_id"].is_unique().all()


@pytest.mark.parametrize("arm", ["sft", "train/nll", "train/adagrpo"])
def test_the_best_step_is_the_best_on_validation(finished: Path, arm: str) -> None:
    text = (finished / arm / "validation.jsonl").read_text(encoding="utf-8")
    curve = {row["step"]: row["ndcg@10"] for row in map(json.loads, text.splitlines())}
    step = json.loads((finished / arm / "best/checkpoint.json").read_text(encoding="utf-8"))["step"]
    assert 0 in curve and curve[step] == max(curve.values()) >= curve[0]
    final = json.loads((finished / arm / "final/checkpoint.json").read_text(encoding="utf-8"))["step"]
    assert final == max(curve)


def test_the_curve_is_what_is_reported(metrics: dict[str, Any], finished: Path) -> None:
    """There are fewer users than the validation sample holds, so the two are measured on the same cases."""
    text = (finished / "train/adagrpo/validation.jsonl").read_text(encoding="utf-8")
    rows = {row["step"]: row for row in map(json.loads, text.splitlines())}
    reported = {row["step"]: row["validation"] for row in (entry(metrics, f"adagrpo/{k}") for k in ("best", "final"))}
    for step, values in (reported | {0: entry(metrics, "sft")["validation"]}).items():
        rates = {name: value for name, value in values.items() if name != "mean_reward@10"}
        assert {name: rows[step][name] for name in rates} == pytest.approx(rates, rel=1e-12)
        # while training, the ranker too may work in bf16
        assert rows[step]["mean_reward@10"] == pytest.approx(values["mean_reward@10"], rel=0.02, abs=0.02)


def test_equal_weights_are_evaluated_once(copied: Path, data: Path, world: Any) -> None:
    for name in ("evaluate/adagrpo", "evaluate/sft", "train/adagrpo"):
        shutil.rmtree(copied / name)
    shutil.copytree(copied / "sft", copied / "train/adagrpo")  # an arm whose best step is the starting policy
    counted: list[str] = []

    class Counter(Silent):
        def progress(self, label: str, done: int, total: int, values: Any) -> None:
            counted.append(label)

    run = world.run(copied, data, console=Counter())
    for name in ("sft", "adagrpo/best", "adagrpo/final"):
        run.stage(f"evaluate/{name}")
    both = [copied / "sft" / kind / "model.safetensors" for kind in ("best", "final")]
    further = set() if both[0].read_bytes() == both[1].read_bytes() else {"evaluate/adagrpo/final"}
    assert {label.split()[0] for label in counted} == {"evaluate/sft"} | further
    for name in ("metrics.json", "predictions.parquet", "free.parquet"):
        content = (copied / "evaluate/adagrpo/best" / name).read_bytes()
        assert content == (copied / "evaluate/sft" / name).read_bytes()


def test_results_rows_have_the_promised_form(finished: Path, metrics: dict[str, Any]) -> None:
    rows = [json.loads(line) for line in (finished / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    baselines = {row["arm"]: row for row in rows if row["split"] == "test" and row["arm"] in metrics["baselines"]}
    assert set(baselines) == {"popularity", "item_knn", "user_knn", "ranker"}
    assert all(row["metrics"] == metrics["baselines"][name]["test"] for name, row in baselines.items())
    assert len(rows) == 2 * (len(CHECKPOINTS) + len(baselines))
    promised = {"dataset", "objective", "gate", "seed", "checkpoint", "split", "metrics", "admission", "recipe"}
    promised |= {"config_hash", "data_hash", "commit", "seconds", "command"}
    assert all(promised <= set(row) for row in rows)
    row = next(r for r in rows if (r["objective"], r["checkpoint"], r["split"]) == ("adagrpo", "final", "test"))
    assert row["metrics"] == entry(metrics, "adagrpo/final")["test"] and row["seconds"] > 0


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("research.fair_trial.__main__", "python -m research.fair_trial --sets yelp"),
        ("adagrpo.__main__", "adagrpo --sets yelp"),
        (None, "adagrpo --sets yelp"),
    ],
)
def test_a_row_names_the_module_that_was_run(monkeypatch: pytest.MonkeyPatch, module: str | None, command: str) -> None:
    spec = None if module is None else ModuleSpec(module, None)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    monkeypatch.setattr(sys, "argv", ["somewhere", "--sets", "yelp"])
    assert _command() == command


def test_arms_that_are_not_trained_are_left_out(copied: Path, data: Path, world: Any) -> None:
    shutil.rmtree(copied / "train" / "adagrpo")
    run = world.run(copied, data)
    run.evaluate()
    assert list(run.results["stages"]) == ["sft", "nll"]
