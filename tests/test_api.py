"""The Python API: the same lists, numbers and files as the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
import torch

import adagrpo
from adagrpo import Run, pipeline
from adagrpo.data.prepared import load_item_ids
from adagrpo.data.sequences import pad
from adagrpo.errors import UserError
from adagrpo.lists.query import Query
from adagrpo.pipeline import ListOptions
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.serve import recommender
from adagrpo.types import Ragged


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, adagrpo;"
        " print(sorted({'torch', 'polars', 'numpy', 'typer', 'adagrpo.pipeline'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
    with pytest.raises(AttributeError, match="module 'adagrpo' has no attribute 'Walk'"):
        adagrpo.Walk  # noqa: B018


def questions(run: Run) -> tuple[list[str], list[list[Any]]]:
    """Users and histories of the test cases, in the ids of the log."""
    data = RunData(run)
    names, cases = load_item_ids(data.prepared).to_list(), data.cases("test")
    users = pl.read_parquet(run.directory / "prepare/users.parquet")["user_id"].gather(cases.users).to_list()
    return users, [[names[item] for item in cases.histories.row(row)] for row in range(len(cases))]


@pytest.mark.parametrize("checkpoint", ["best", "final"])
def test_the_lists_are_those_that_evaluate_wrote_and_serve_gives(finished: Path, checkpoint: Any):
    run = Run.open(finished)
    users, histories = questions(run)
    lists = run.recommend(histories, arm="adagrpo", checkpoint=checkpoint)
    written = pl.read_parquet(finished / f"evaluate/adagrpo/{checkpoint}/predictions.parquet")
    of_user = written.filter(pl.col("rank") <= 10).partition_by("user_id", as_dict=True)
    assert [of_user[(user,)].sort("rank")["item_id"].to_list() for user in users] == lists.items
    scores = [of_user[(user,)].sort("rank")["score"].to_list() for user in users]
    np.testing.assert_allclose(lists.scores, scores, atol=1e-2)  # bf16 where it is native
    served, about = recommender(run, ListOptions("adagrpo", checkpoint))
    answers = served.recommend([Query(served.known(history)[0]) for history in histories])
    assert [one.items for one in answers] == lists.items and lists.about == about
    codes = pl.read_parquet(finished / "tokenize/codes.parquet")["codes"].to_list()
    rows = {name: row for row, name in enumerate(load_item_ids(finished / "prepare").to_list())}
    assert lists.codes == [[codes[rows[item]] for item in items] for items in lists.items]
    assert lists.frame.group_by("history").len()["len"].to_list() == [10] * len(histories)


def test_what_is_excluded_is_left_out_and_nothing_else(finished: Path):
    """Against every item's own log-probability; the beam holds all prefixes of the tiny catalogue."""
    run = Run.open(finished)
    models = Models(RunData(run))
    policy, names = models.policy(finished / "sft/best").eval(), load_item_ids(models.data.prepared).to_list()
    _, histories = questions(run)
    histories = histories[:8]
    free = run.recommend(histories, arm="sft", precision="float32")
    exclude = [[*items[: place % 4], "nowhere"] for place, items in enumerate(free.items)]
    lists = run.recommend(histories, k=7, arm="sft", exclude=exclude, precision="float32")
    for history, left_out, items, scores in zip(histories, exclude, lists.items, lists.scores, strict=True):
        rows = np.array([names.index(name) for name in history], np.int32)
        with torch.no_grad():
            context = policy.encode(pad(Ragged(rows, np.array([0, len(rows)])), np.array([0]), 6))
            totals = policy.score(context, models.data.catalog.codes.unsqueeze(0)).sum(-1)[0]
        order = sorted(range(30), key=lambda row: -float(totals[row]))
        expected = [row for row in order if names[row] not in left_out][:7]
        assert items == [names[row] for row in expected]
        assert scores == pytest.approx([float(totals[row]) for row in expected], abs=1e-5)
    seen = run.recommend(histories, exclude="history")
    assert not any(set(items) & set(history) for items, history in zip(seen.items, histories, strict=True))


def test_unknown_ids_are_counted_and_never_replaced(finished: Path):
    run = Run.open(finished)
    plain = run.recommend([[3, 13]])
    lists = run.recommend([[3, "gone", 13], ["gone", "lost"], [3, 13]])
    assert lists.items == [plain.items[0], [], plain.items[0]]
    assert lists.unknown == [["gone"], ["gone", "lost"], []] and lists.unknown_ids == 3 and len(lists) == 3
    assert "3 ids of the histories name no item" in lists._repr_html_()
    assert lists.frame["history"].unique().to_list() == [0, 2]
    assert run.recommend([]).frame.is_empty()


def test_lists_are_narrowed_to_what_is_eligible(finished: Path) -> None:
    run, ids = Run.open(finished), [10 * item + 3 for item in range(12)]
    lists = run.recommend([[3, 13], ["gone"]], k=5, include=ids, exclude={"item_id": [3, 13]}, popular=True)
    assert all(len(items) == 5 and {*items} <= {*ids[2:]} for items in lists.items)
    assert lists.sources == ["policy", "popular"] and lists.unknown == [[], ["gone"]]
    with pytest.raises(UserError, match=r"^exclude.brand: the items have no group"):
        run.recommend([[3]], exclude={"brand": "acme"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 11}, "k: 11 is none of 1 to 10, the beam of the recipe"),
        ({"k": 0}, "k: 0 is none of 1 to 10"),
        ({"histories": ["3"]}, r"histories\[0\]: is '3'; a list of item ids is wanted"),
        ({"exclude": []}, "exclude: holds 0 lists for 1 histories"),
        ({"exclude": [3]}, r"exclude\[0\]: is 3; a list of item ids is wanted"),
        ({"arm": "grpo"}, r"--arm grpo: no list of .*; did you mean 'adagrpo'\?"),
        ({"reward_weight": -5.0}, r"^reward_weight: -5\.0 is no weight; give a finite number of at least 0"),
        ({"reward_weight": float("nan")}, "^reward_weight: nan is no weight"),
        ({"precision": "fp16"}, "^precision: 'fp16' is none of auto, float32, bfloat16"),
        ({"catalog": 7}, "catalogue '7': no such version"),
    ],
)
def test_what_cannot_be_recommended_is_said(finished: Path, arguments: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        Run.open(finished).recommend(**({"histories": [[3]]} | arguments))


def test_a_version_of_the_catalogue_may_be_a_number(finished: Path) -> None:
    run = Run.open(finished)
    assert run.recommend([[3]], catalog=0).items == run.recommend([[3]], catalog="0").items


def test_metrics_of_other_stages_than_are_there_are_refused(copied: Path) -> None:
    with pytest.raises(UserError, match=r"metrics.json is stale: .*exclude_history.*; run `adagrpo evaluate --run"):
        _ = Run.open(copied, {"evaluation.exclude_history": True}).metrics
    shutil.rmtree(copied / "evaluate" / "nll" / "best")
    with pytest.raises(UserError, match=r"metrics.json is stale: evaluate/nll/best is missing; run `adagrpo evaluate"):
        _ = Run.open(copied).metrics


def test_metrics_are_those_of_the_file(finished: Path):
    metrics = Run.open(finished).metrics
    content = json.loads((finished / "metrics.json").read_text())
    value = metrics.filter(stage="adagrpo", checkpoint="final", split="test", metric="ndcg@10")["value"].item()
    assert value == content["stages"]["adagrpo"]["final"]["test"]["ndcg@10"]
    assert metrics.filter(stage="sft", split="validation", metric="hr@10")["checkpoint"].to_list() == [None]
    assert set(metrics["stage"]) == {"popularity", "item_knn", "user_knn", "ranker", "sft", "nll", "adagrpo"}


@pytest.mark.slow  # two runs
def test_a_run_stage_by_stage_is_that_of_the_command_line(world: Any, data: Path, tmp_path: Path, contents: Any):
    run = Run.create(world.recipe(), tmp_path / "run", data)
    assert run.prepare()["items"] == 30 and run.tokenize()["levels"] >= 2
    run.sft().ranker()
    with pytest.raises(UserError, match="diagnose"):
        _ = run.diagnosis
    found = run.diagnose()
    assert found.verdict in ("use", "do_not_use") and found.sentences
    assert run.diagnosis == found
    with pytest.raises(UserError, match="is of another policy or reward; run `adagrpo diagnose --run"):
        _ = Run.open(tmp_path / "run", {"reward.kind": "noise"}).diagnosis
    metrics = run.train(anyway=True).evaluate()
    assert run.report().is_file() and repr(run).endswith("'tiny')")
    whole = Run.create(run.recipe, tmp_path / "whole", data)
    assert whole.complete().equals(metrics)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    with pytest.raises(UserError, match="is 'compact', which no other program opens"):
        run.export(tmp_path / "out")

    picture = ElementTree.fromstring(found.plot().svg)
    title = picture.findtext("{http://www.w3.org/2000/svg}title")
    assert (
        title
        and title == "Change of NDCG@10 by the weight of the reward"
        and found.plot().svg in (run.directory / "diagnose.html").read_text()
    )
    assert found.verdict in found._repr_html_() and found.plot()._repr_svg_() in found._repr_html_()
    found.plot().save(tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").read_text() == found.plot().svg


def test_settings_and_recipes_are_those_of_the_command_line(data: Path, tmp_path: Path):
    settings = {"objective.lambda": 0.5, "reward": {"kind": "noise"}}
    run = Run.create(data / "recipe.yaml", tmp_path / "run", data, settings)
    assert run.config.objective.lambda_ == 0.5 and run.config.reward.kind == "noise"
    run.prepare()
    assert Run.open(tmp_path / "run", ["seed=3"]).config.seed == 3
    with pytest.raises(UserError, match="not a run"):
        Run.open(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        Run.create(data / "recipe.yaml", tmp_path / "run", tmp_path / "nowhere")
    recipe = run.recipe | {"data": run.recipe["data"] | {"logs": [Path("log.csv")]}}
    assert Run.create(recipe, tmp_path / "paths", data).config.data.logs == ("log.csv",)
    assert Run.create(recipe, tmp_path / "set", data, {"data.logs": [Path("b.csv")]}).config.data.logs == ("b.csv",)
    with pytest.raises(UserError, match="unknown key"):
        Run.create({"nonsense": 1}, tmp_path / "run", data)


def test_an_open_run_does_not_answer_with_what_another_process_has_replaced(copied: Path):
    run = Run.open(copied)
    histories = questions(run)[1][:5]
    before = run.recommend(histories, arm="nll", checkpoint="final")
    kept = run._served.copy()
    assert run.recommend(histories, arm="nll", checkpoint="final").items == before.items and run._served == kept
    pipeline.Run.open(copied, ["train.fit.learning_rate=0.05"]).train()
    with pytest.raises(UserError, match=r"train/nll is stale: made with train\.fit\.learning_rate=0\.05"):
        run.recommend(histories, arm="nll", checkpoint="final")
    after = Run.open(copied).recommend(histories, arm="nll", checkpoint="final")
    assert after.scores != before.scores
    shutil.rmtree(copied / "train/nll")
    pipeline.Run.open(copied, ["train.fit.learning_rate=0.005"]).train()
    assert run.recommend(histories, arm="nll", checkpoint="final").scores == before.scores  # as this run is again
