"""The stages of the judges, in a tiny run: orders, their report, and what makes them again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from adagrpo.evaluation.judging import judge_order
from adagrpo.pipeline import Run
from adagrpo.pipeline.chain import parts_of
from adagrpo.pipeline.commands import stage_at, verb_for

ITEMS = 30  # of the tiny world
ORDERS = ["popularity", "reward", "sft", "rerank", "nll/best", "nll/final", "distill-tuned/best", "distill-tuned/final"]
JUDGES = {"later": {"path": "shown.parquet", "labels": ["odd", "click"]}}


@pytest.fixture(scope="module")
def judged(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("judged")
    world.write(folder)
    rng = np.random.default_rng(0)
    rows = [
        (user, int(item) * 10 + 3, bool(item % 2), bool(rng.random() < 0.5))
        for user in sorted(world.sequences)
        for item in rng.permutation(ITEMS)[:12]
    ]
    shown = pl.DataFrame(rows, schema=["user_id", "item_id", "odd", "click"], orient="row")
    shown.write_parquet(folder / "shown.parquet")
    run = world.run(folder / "run", folder, train={"arms": ["nll", "distill-tuned"]}, judges=JUDGES)
    run.complete()
    return run


def test_every_order_is_in_metrics_and_on_the_page(judged: Run) -> None:
    metrics = json.loads(judged.path("metrics.json").read_text(encoding="utf-8"))
    content = metrics["judges"]["later"]
    assert list(content["labels"]) == ["odd", "click"] and content["exposures"]["kept"] > 300
    for orders in content["labels"].values():
        assert list(orders) == ORDERS
        assert all(0 <= orders[name]["auc"]["low"] <= orders[name]["auc"]["high"] <= 1 for name in ORDERS)
        assert ["difference" in orders[name] for name in ORDERS] == [name not in ORDERS[:3] for name in ORDERS]
    assert "later: odd" in judged.path("report.html").read_text(encoding="utf-8")


def test_re_ranking_adds_the_reward_at_the_chosen_weight(judged: Run) -> None:
    first, second, both = (
        pl.read_parquet(judged.path("judges", name, "scores.parquet"))["score"].to_numpy()
        for name in ("sft", "reward", "rerank")
    )
    weight = json.loads(judged.path("teacher", "weight.json").read_text(encoding="utf-8"))["weight"]
    np.testing.assert_allclose(both, first + weight * second)


def test_a_report_follows_from_scores_and_exposures(judged: Run) -> None:
    shown = pl.read_parquet(judged.path("judges", "exposures", "exposures.parquet"))
    scores = pl.read_parquet(judged.path("judges", "nll", "final", "scores.parquet"))["score"].to_numpy()
    report = json.loads(judged.path("judges", "nll", "final", "report.json").read_text(encoding="utf-8"))
    order = judge_order(scores, shown["odd"].to_numpy().astype(bool), shown["user"].to_numpy().astype(np.int64))
    assert report["later"]["odd"]["auc"]["mean"] == pytest.approx(order.users["auc"].mean())


def test_nothing_is_made_again_and_all_of_it_is_up_to_date(judged: Run) -> None:
    again = Run(judged.directory, judged.config, judged.data)
    again.complete()
    assert again.made == []
    parts = {name: part for name, part in parts_of(again).items() if name.startswith("judges/")}
    names = {name for name in ORDERS if name != "popularity"} | {"exposures", "counts"}
    assert set(parts) == {f"judges/{name}" for name in names}
    assert all(part.state == "done" for part in parts.values())


def test_another_judge_makes_no_model_again(judged: Run, world: Any) -> None:
    fewer = {"later": JUDGES["later"] | {"users": 20}}
    other = world.run(judged.directory, judged.data, train={"arms": ["nll", "distill-tuned"]}, judges=fewer)
    stale = {name for name, part in parts_of(other).items() if not part.usable}
    assert {name.split("/")[0] for name in stale} == {"judges"}


def test_a_file_of_a_judge_names_its_stage_and_verb(judged: Run) -> None:
    paths = {"judges/sft": ("judges", "sft"), "judges/nll/best": ("judges", "nll", "best")}
    for name, parts in paths.items():
        assert stage_at(judged, judged.path(*parts, "report.json")) == name
        assert verb_for(name) == "evaluate"


def test_a_recipe_without_judges_has_none(finished: Path) -> None:
    assert not (finished / "judges").exists()
    assert "judges" not in json.loads((finished / "metrics.json").read_text(encoding="utf-8"))
