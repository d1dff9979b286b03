"""A ranker and its report where nothing says what came next."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from adagrpo.config import load_config
from adagrpo.errors import UserError
from adagrpo.pipeline import Run
from adagrpo.pipeline.compare import Comparison
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.stages.impressions import examined, exposed
from adagrpo.pipeline.status import plan
from adagrpo.storage.artifacts import seal
from adagrpo.types import Histories

from ..command_line import command

USERS, ITEMS = 60, 40


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {**base, **{k: {**base[k], **v} if isinstance(v, dict) and k in base else v for k, v in changes.items()}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users of two kinds who each want one half of the items; the platform shows the first items most."""
    folder, draw = tmp_path_factory.mktemp("impressions"), np.random.default_rng(0)
    weights = 1 / np.arange(1, ITEMS + 1)
    lines = {"biased.csv": ["uid,item_id,rating"], "random.csv": ["uid,item_id,rating"]}
    for user in range(USERS):
        for name, chance in (("biased.csv", weights / weights.sum()), ("random.csv", np.full(ITEMS, 1 / ITEMS))):
            for item in draw.choice(ITEMS, 20, replace=False, p=chance):
                chosen = draw.random() < (0.85 if item % 2 == user % 2 else 0.15)
                lines[name].append(f"u{user},{item},{5 if chosen else 2}")
    for name, content in lines.items():
        (folder / name).write_text("\n".join(content) + "\n", encoding="utf-8")
    columns = {"user": "uid", "rating": "rating"}
    recipe = {
        "name": "impressions",
        "threads": 1,
        "data": {
            "logs": ["biased.csv"],
            "columns": columns,
            "click_rating": 4,
            "random": {"logs": ["random.csv"], "columns": columns, "click_rating": 4},
            "split": {"kind": "impressions"},
        },
        "ranker": {
            "negatives": 0,
            "width": 16,
            "layers": 1,
            "fit": {"epochs": 12, "batch_size": 16, "learning_rate": 0.01, "validations": 3},
        },
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return folder


def test_a_plan_has_the_stages_of_logs_without_order(folder: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", load_config(folder / "recipe.yaml"), folder)
    content = plan(run, ("prepare", "ranker", "train", "evaluate"))
    assert [row["stage"] for row in content["stages"]] == ["prepare", "ranker", "ranker/exposures"]
    assert not run.directory.exists()
    run.complete()
    steps = json.loads((run.directory / "ranker" / "final" / "checkpoint.json").read_text(encoding="utf-8"))["step"]
    assert content["stages"][1]["steps"] == steps
    assert {row["state"] for row in plan(run, ("prepare", "ranker"))["stages"]} == {"unchanged"}


@pytest.fixture(scope="module")
def finished(folder: Path) -> Any:
    run = Run(folder / "run", load_config(folder / "recipe.yaml"), folder)
    run.complete()
    return run


def test_the_report_has_both_exposures(finished: Any) -> None:
    metrics = json.loads(finished.path("metrics.json").read_text(encoding="utf-8"))
    entries = {entry["exposure"]: entry for entry in metrics["exposures"]["exposures"]}
    assert list(entries) == ["biased", "random"] and metrics["exposures"]["loss"] == "clicks"
    for name, entry in entries.items():
        rows = {(row["by"], row["stratum"]): row for row in entry["strata"]}
        assert rows["all", "all"]["auc"]["mean"] > 0.6, name  # it learned what there is to learn
        assert (
            sum(row["impressions"] for key, row in rows.items() if key[0] == "item popularity")
            == rows["all", "all"]["impressions"]
        )
        assert sum(actual["cases"] for actual in entry["calibration"]) == rows["all", "all"]["impressions"]
    page = finished.path("report.html").read_text(encoding="utf-8")
    assert "held-out impressions" in page and "Learning curves" not in page
    assert 'href="#exposures"' in page and 'id="exposures"' in page


def test_scores_are_those_of_all_the_users_clicks(finished: Any) -> None:
    """The figures again, one impression at a time."""
    data = RunData(finished)
    ranker, actual = Models(data).ranker(finished.path("ranker", "best")).eval(), exposed(data, "biased")
    aucs = []
    for user in np.unique(actual.users):
        mine = actual.users == user
        state = ranker.last_states(_history(data, user))
        score = ranker.catalogue_scores(state)[0].detach().numpy()[actual.items[mine]]
        pairs = [(a > b) + (a == b) / 2 for a in score[actual.clicked[mine]] for b in score[~actual.clicked[mine]]]
        aucs += [np.mean(pairs)] if pairs else []
    assert examined(data, ranker, actual)["auc"] == pytest.approx(np.mean(aucs), abs=1e-6)


def _history(data: RunData, user: int) -> Histories:
    items = torch.from_numpy(data.training.row(user)[-data.config.max_history :].astype(np.int64))[None]
    return Histories(items, torch.tensor([items.shape[1]]))


def test_its_parts_are_skipped_when_nothing_has_changed(finished: Any) -> None:
    finished.path("events.jsonl").unlink()
    finished.complete()
    rows = [json.loads(line) for line in finished.path("events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["stage"], row["event"]) for row in rows] == [
        (stage, "skip") for stage in ("prepare", "ranker", "ranker/exposures")
    ]


def test_lambdarank_has_a_report_and_no_calibration(finished: Any) -> None:
    pytest.importorskip("lightgbm")
    settings = ("reward={kind: lambdarank}", "ranker.lambdarank={minimum_leaf: 5, trees: 20, negatives: 0}")
    tokens = [word for setting in settings for word in ("--set", setting)]
    status, out, err = command("ranker", "--run", finished.directory, *tokens, "--json", "--quiet")
    assert status == 0, err
    report = json.loads(out)["exposures"]
    assert report["loss"] == "lambdarank"
    assert [entry["exposure"] for entry in report["exposures"]] == ["biased", "random"]
    assert all("calibration" not in entry and "ece" not in entry["strata"][0] for entry in report["exposures"])
    status, out, _ = command("ranker", "--run", finished.directory, "--set", "reward={kind: sequential}", "--quiet")
    assert status == 0 and "random" in out and "report:" in out


def test_a_policy_is_refused_in_one_line(finished: Any) -> None:
    verbs = [[verb] for verb in ("tokenize", "sft", "train", "evaluate", "diagnose", "serve")]
    for verb in [*verbs, ["export", "--to", finished.directory.parent / "exported"]]:
        status, out, err = command(*verb, "--run", finished.directory, "--quiet")
        assert (status, out) == (2, "") and err.count("\n") == 1 and "impressions has no order" in err, (verb, err)
    with pytest.raises(UserError, match="no next item for a policy"):
        finished.sft()
    with pytest.raises(UserError, match=r"impressions has no order.*`adagrpo run` fits and examines the ranker"):
        Comparison(finished.directory.parent / "comparison", finished.config, finished.data)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ranker": {"folds": 2}}, "impressions without order have none"),
        ({"ranker": {"user_share": 0.5}}, "ranker.user_share is for logs with an order"),
        ({"data": {"split": {"kind": "impressions", "users": 5}}}, "data.split.users bounds the evaluated users"),
        ({"data": {"shuffle_ties": {}}}, "takes neither shuffle_ties nor"),
        ({"data": {"min_user_interactions": 2}}, "takes neither shuffle_ties nor"),
        ({"data": {"keep_unseen_items": True, "items": {"path": "items.csv"}}}, "keep_unseen_items has none to keep"),
        ({"data": {"click_rating": 9}}, "no interaction among 1200 rows"),
        ({"data": {"random": {"logs": ["gone.csv"]}}}, "gone.csv: no such file"),
        ({"ranker": {"propensity": "ips"}}, "needs data.columns.propensity"),
    ],
)
def test_bad_input_is_one_line(changes: dict[str, Any], words: str, folder: Path, tmp_path: Path) -> None:
    recipe = merged(yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8")), changes)
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    status, out, err = command("run", tmp_path / "bad.yaml", "--data", folder, "--out", tmp_path / "run", "--quiet")
    assert (status, out) == (2, "") and words in err and err.count("\n") == 1, err


def test_nothing_to_examine_is_said(finished: Any, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", finished.config, finished.data)
    run.prepare()
    path = run.path("prepare", "held_out.parquet")
    pl.read_parquet(path).with_columns(pl.lit(True).alias("clicked")).write_parquet(path)
    seal(path.parent, kind="prepare", fingerprint="")
    with pytest.raises(UserError, match=r"120 clicks in 120 validation|clicks in \d+ validation impressions"):
        exposed(RunData(run), "validation")


def test_probabilities_are_those_of_clicks(finished: Any) -> None:
    """Calibration at large: the mean claimed probability is near the rate of clicks."""
    metrics = json.loads(finished.path("metrics.json").read_text(encoding="utf-8"))
    biased = metrics["exposures"]["exposures"][0]
    count = sum(row["cases"] for row in biased["calibration"])
    claimed = sum(row["cases"] * row["confidence"] for row in biased["calibration"]) / count
    assert 0 < claimed < 1 and claimed == pytest.approx(biased["strata"][0]["click_rate"], abs=0.12)
