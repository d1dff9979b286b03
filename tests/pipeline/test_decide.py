"""`decide`: the rule, and that what it measured is what is served, item by item, for every contender."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from numpy.typing import NDArray

from adagrpo.config import Config
from adagrpo.config.reward import FeatureOptions
from adagrpo.data.prepared import load_cases, load_item_ids, load_user_ids
from adagrpo.errors import UserError
from adagrpo.experiments.live import LiveExperiment
from adagrpo.experiments.plan import read_plan
from adagrpo.lists import Query
from adagrpo.lists.fallback import CircuitBreaker
from adagrpo.lists.names import parse_list
from adagrpo.lists.table import SOURCES, fused, listed
from adagrpo.pipeline import ListOptions, Run
from adagrpo.pipeline.compare import Comparison
from adagrpo.pipeline.decide import Choice, _milliseconds, _worth_of_training, choose
from adagrpo.pipeline.decision_plan import plan_experiment
from adagrpo.pipeline.experiment import freeze_experiment
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.list_makers import ListMaker
from adagrpo.pipeline.make import make
from adagrpo.pipeline.outputs import is_stale
from adagrpo.pipeline.serve import Operation, _Wanted, recommender
from adagrpo.pipeline.stages.reranking import STAGE, re_rankings, reranking
from adagrpo.pipeline.staleness import parts_of
from adagrpo.pipeline.status import status
from adagrpo.pipeline.versions import evaluate_with
from adagrpo.rewards import FeatureReward
from adagrpo.serving.model_manager import Asked
from adagrpo.statistics import all_pairs
from adagrpo.types import Cases, Histories, Ragged

from ..command_line import command
from ..consoles import Heard

FEATURE = {"kind": "feature", "name": "next_last"}
SUM = """
from adagrpo.rewards import WeightedReward


def made(models, members, **options):
    return WeightedReward(members, [0.7, 0.3])
"""
REWARDS = {"kind": "weighted", "members": [FEATURE, {"kind": "noise"}]}


@pytest.fixture(scope="module")
def decided(world: Any, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any]]:
    run = world.run(
        tmp_path_factory.mktemp("decided") / "run", data, reward=REWARDS, evaluation={"exclude_history": True}
    )
    return run, run.decide(train=True)


def test_what_was_measured_is_what_is_served(decided: tuple[Run, dict[str, Any]]) -> None:
    run, content = decided
    names = [row["list"] for row in content["contenders"]]
    assert {"popularity", "item_knn", "ranker", "sft", "rerank", "fuse", "fuse-without-reward", "nll+fuse"} <= {*names}
    assert {"reward-1", "reward-2"} <= {*names}
    prepared = run.path("prepare")
    cases, items, users = load_cases(prepared, "test"), load_item_ids(prepared), load_user_ids(prepared)
    histories = [items.gather(cases.histories.row(row)).to_list() for row in range(len(cases))]
    for name in names:
        trained = name not in ("sft", "rerank") and parse_list(name).order == "policy" and "+" not in name
        folder = run.path("evaluate", name, *(["best"] if trained else []))
        measured = pl.read_parquet(folder / "predictions.parquet")
        expected = dict(measured.sort("rank").group_by("user_id").agg("item_id").iter_rows())
        served = run.recommend(histories, arm=name, as_measured=True)
        for user, found in zip(users.gather(cases.users).to_list(), served.items, strict=True):
            assert found == expected.get(user, [])[:10], name


def test_each_reward_of_a_sum_is_a_feature_of_its_own(decided: tuple[Run, dict[str, Any]]) -> None:
    run, _ = decided
    weights = json.loads((run.path("fuse", "sft") / "weights.json").read_text(encoding="utf-8"))
    sources = fused(run.config)
    optional = {name for name in sources if SOURCES[name].optional}
    for order, rewards in (("fuse", ["reward 1 (feature)", "reward 2 (noise)"]), ("fuse-without-reward", [])):
        found = [*weights[order]["weights"]]
        assert [name for name in found if name not in optional] == [
            "policy",
            *(name for name in sources if name not in optional),
            *rewards,
        ]


def test_the_choice_is_written_down_with_the_command_that_serves_it(decided: tuple[Run, dict[str, Any]]) -> None:
    run, content = decided
    written = json.loads(run.path("decision.json").read_text(encoding="utf-8"))
    assert written == {key: value for key, value in content.items() if key != "refit"}
    assert content["serve"].endswith(f"--arm {content['chosen']}")
    row = next(row for row in content["contenders"] if row["list"] == content["chosen"])
    assert "the reward" in row["needs"] or content["chosen"] not in ("rerank", "fuse")


def test_training_is_worth_what_its_fused_list_gains_over_the_fused_list(decided: tuple[Run, dict[str, Any]]) -> None:
    run, content = decided
    ranks = {arm: pl.read_parquet(run.path("fuse", arm) / "validation.parquet") for arm in ("sft", "nll", "adagrpo")}
    values = {
        arm: np.where((found > 0) & (found <= 10), 1 / np.log2(found.clip(1) + 1), 0)
        for arm, table in ranks.items()
        for found in [table["fuse"].to_numpy()]
    }
    best = max(("nll", "adagrpo"), key=lambda arm: float(values[arm].mean()))
    gained = float((values[best] - values["sft"]).mean())
    assert f"{best}+fuse has {gained:+.4f} [" in content["training"]


@pytest.mark.slow
def test_a_trained_policy_that_is_the_starting_one_shares_its_fits(
    world: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = world.run(tmp_path / "run", data, train={"arms": ["nll"], "fit": {"learning_rate": 1e-30}})
    run.decide()
    monkeypatch.setattr("adagrpo.pipeline.stages.fuse.fit_weights", None)  # a further fit would fail
    rows = {row["list"]: row for row in run.decide(train=True)["contenders"]}
    for measured in ("validation", "test"):
        assert rows["nll+fuse"][measured] == rows["fuse"][measured] != rows["sft"][measured]


def test_where_a_trained_list_is_chosen_without_a_settled_gain_the_sentence_says_so() -> None:
    noise = np.random.default_rng(0).normal(size=400)
    ahead = (noise - noise.mean()) / noise.std() + 1.5 / 20  # by 1.5 standard errors
    found = {"fuse": np.zeros(400), "nll+fuse": ahead}
    said = {chosen: _worth_of_training(found, all_pairs(found), ["nll"], chosen) for chosen in found}
    assert all(text is not None and "adds nothing that these cases can show" in text for text in said.values())
    assert [str(text).endswith("; nll+fuse is chosen all the same") for text in said.values()] == [False, True]


def test_the_page_and_the_status_know_the_decision_until_it_is_stale(
    decided: tuple[Run, dict[str, Any]], tmp_path: Path
) -> None:
    run, content = decided
    copied = run_copy(run, tmp_path)
    again = Run.open(copied)
    again.evaluate()
    page = again.report()
    assert status(copied)["next"].startswith("adagrpo serve ") and content["serve"] in page.read_text(encoding="utf-8")
    assert f"--run {copied} " in status(copied)["next"] and status(copied)["decision.json"]["state"] == "done"
    changed = Run.open(copied, ["sft.epochs=1"])
    assert is_stale(changed, "decided", parts_of(changed, measuring=True))
    shutil.rmtree(copied / "evaluate" / "popularity")
    said = status(copied)
    assert said["decision.json"]["state"] == "stale" and said["next"] == f"adagrpo decide --run {copied}"


def test_the_plan_of_an_experiment_holds_the_chosen_list_against_the_control(
    decided: tuple[Run, dict[str, Any]], tmp_path: Path
) -> None:
    run = Run.open(run_copy(decided[0], tmp_path))
    path, rates = run.directory / "decision.plan.yaml", {"sft": 0.2, "fuse": 0.25, "item_knn": 0.1}
    path.unlink(missing_ok=True)
    served = plan_experiment(run, "fuse", "sft", rates, date(2026, 11, 29))
    plan = read_plan(path)
    assert {name: arm.serves for name, arm in plan.arms.items()} == {"control": "sft", "treatment": "fuse"}
    assert plan.start == date(2026, 11, 30) and plan.metrics["clicks"].expected == 0.25
    assert plan.metrics["clicks"].mean is None  # no click rate is made up
    assert served is not None and f"--experiment {path}" in served["serve"]
    path.write_text(path.read_text(encoding="utf-8").replace("days: 14", "days: 7"), encoding="utf-8")
    changed = path.read_bytes()
    assert plan_experiment(run, "fuse", "sft", rates | {"fuse": 0.3}) == served  # what somebody changed stays
    assert plan_experiment(run, "item_knn", "sft", rates) is None  # also where it is of other lists
    assert plan_experiment(run, "sft", "sft", rates) is None and path.read_bytes() == changed
    path.write_text("arms: [", encoding="utf-8")
    assert plan_experiment(run, "fuse", "sft", rates) is None


def test_a_plan_that_nobody_touched_follows_the_decision_and_a_frozen_one_stays(
    decided: tuple[Run, dict[str, Any]], tmp_path: Path
) -> None:
    run = Run.open(run_copy(decided[0], tmp_path))
    path, rates = run.directory / "decision.plan.yaml", {"sft": 0.2, "fuse": 0.25, "item_knn": 0.1}
    path.unlink(missing_ok=True)
    plan_experiment(run, "fuse", "sft", rates)
    salt = read_plan(path).salt
    plan_experiment(run, "fuse", "sft", rates)
    assert read_plan(path).salt == salt
    plan_experiment(run, "fuse", "sft", rates | {"fuse": 0.3})
    assert read_plan(path).metrics["clicks"].expected == 0.5
    plan_experiment(run, "fuse", "sft", rates, date(2099, 1, 1))
    assert read_plan(path).start == date(2099, 1, 2)
    plan_experiment(run, "item_knn", "sft", rates)
    assert read_plan(path).arms["treatment"].serves == "item_knn"
    freeze_experiment(path)
    assert plan_experiment(run, "fuse", "sft", rates) is None
    assert read_plan(path).arms["treatment"].serves == "item_knn"
    assert plan_experiment(run, "sft", "sft", rates) is None and path.exists()
    path.write_text(path.read_text(encoding="utf-8").replace("days: 14", "days: 7"), encoding="utf-8")
    assert plan_experiment(run, "item_knn", "sft", rates) is None  # `serve` would refuse it


def test_a_plan_whose_window_is_over_is_not_frozen(tmp_path: Path) -> None:
    plan = {"name": "late", "arms": {"a": {"serves": "sft"}, "b": {"serves": "fuse"}}, "control": "a", "salt": "s" * 8}
    plan |= {"start": "2026-10-01", "days": 14, "metrics": {"answers": {"sum": "answers"}}}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
    with pytest.raises(UserError, match="its window ended on 2026-10-15"):
        freeze_experiment(tmp_path / "plan.yaml")


@pytest.mark.parametrize("name", ["tiny \N{SHOPPING TROLLEY}", "a: {b"])
def test_a_plan_may_have_any_name_and_lists_of_any_name(
    decided: tuple[Run, dict[str, Any]], tmp_path: Path, name: str
) -> None:
    run = Run.open(run_copy(decided[0], tmp_path), {"name": name})
    (run.directory / "decision.plan.yaml").unlink(missing_ok=True)
    plan_experiment(run, "null", "no", {"null": 0.2, "no": 0.1})
    plan = read_plan(run.directory / "decision.plan.yaml")
    assert plan.name == f"{name}: null"
    assert {arm.serves for arm in plan.arms.values()} == {"null", "no"}


def run_copy(run: Run, to: Path) -> Path:
    return Path(shutil.copytree(run.directory, to / "run"))


def test_a_list_that_is_not_there_is_answered_with_all_that_are_and_the_nearest(
    decided: tuple[Run, dict[str, Any]],
) -> None:
    run = decided[0]
    trained = "sft, nll, adagrpo, nll+rerank, adagrpo+rerank"
    alone = ", ".join([*listed(run.config), "reward-1", "reward-2"])
    fused = "fuse-without-reward, rerank, fuse, nll+fuse, adagrpo+fuse"
    for name, hint in (("fused", "; did you mean 'fuse'?"), ("xyz", "")):
        with pytest.raises(UserError) as caught:
            run.recommend([[3]], arm=name)
        said = f"--arm {name}: no list of {run.called}; there is {trained}, {alone}, {fused}{hint}"
        assert str(caught.value) == said


def test_what_was_not_made_is_not_offered(finished: Path) -> None:
    made = r"sft, nll, adagrpo, nll\+rerank, adagrpo\+rerank, popularity, item_knn, user_knn, ranker, rerank$"
    with pytest.raises(UserError, match=made):
        Run.open(finished).recommend([[3]], arm="fuse-all")


def test_a_control_that_does_not_compete_is_refused(finished: Path) -> None:
    with pytest.raises(UserError, match="--control mine: none of the lists that compete: popularity, item_knn"):
        Run.open(finished).decide(control="mine")


def test_the_same_command_goes_on_from_what_is_there(decided: tuple[Run, dict[str, Any]]) -> None:
    run, content = decided
    again = Run.open(run.directory)
    repeated = again.decide(train=True)
    assert again.made == [] and repeated["chosen"] == content["chosen"]
    for before, after in zip(content["contenders"], repeated["contenders"], strict=True):
        untimed = {"milliseconds": 0, "processor_milliseconds": 0}
        assert before | untimed == after | untimed


def test_what_was_deleted_is_made_again_by_the_same_command(
    decided: tuple[Run, dict[str, Any]], tmp_path: Path
) -> None:
    copied = run_copy(decided[0], tmp_path)
    with (copied / "sft/best/model.safetensors").open("r+b") as file:
        file.truncate(100)
    assert next(row for row in status(copied)["stages"] if row["stage"] == "sft")["state"] == "damaged"
    for name in ("prepare", "sft"):
        shutil.rmtree(copied / name)
    again = Run.open(copied)
    content = again.decide(train=True)
    assert content["chosen"] == decided[1]["chosen"] and "prepare" in again.made


def test_what_a_changed_recipe_makes_stale_is_made_again_and_said(
    decided: tuple[Run, dict[str, Any]], world: Any, data: Path, tmp_path: Path
) -> None:
    changed: Run = world.run(
        run_copy(decided[0], tmp_path),
        data,
        reward=REWARDS,
        evaluation={"exclude_history": True},
        ranker={"width": 8, "fit": {"epochs": 1}},
    )
    changed.console = Heard()
    changed.decide()
    assert any(
        note.startswith("note: ranker is made again, with what is made from it: ") for note in changed.console.notes
    )
    assert "ranker" in changed.made and "sft" not in changed.made


def test_a_function_that_is_not_there_is_said_before_anything_is_trained(
    world: Any, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "half_done.py").write_text("def taste(histories, candidates):\n    return None\n", encoding="utf-8")
    run: Run = world.run(tmp_path / "run", data, reward={"kind": "callable", "function": "half_done:tastes"})
    run.code = tmp_path
    with pytest.raises(UserError, match="tastes"):
        run.decide()
    assert run.made == []


def test_a_decision_that_is_stale_is_not_served(decided: tuple[Run, dict[str, Any]], tmp_path: Path) -> None:
    shutil.copytree(decided[0].directory, tmp_path / "run")
    changed = Run.open(tmp_path / "run", {"evaluation.beam_width": 20})
    with pytest.raises(UserError, match=r"decision\.json is stale: .*run `adagrpo decide --run .*name a list by --arm"):
        changed.recommend([[3]], k=5)


@pytest.mark.slow
def test_a_test_item_has_no_part_in_the_weights(
    decided: tuple[Run, dict[str, Any]], world: Any, tmp_path: Path
) -> None:
    run, _ = decided
    changed = world
    for user, sequence in world.sequences.items():
        if len(sequence) >= 3:
            changed = changed.changed(user, -1, 143)
    changed.write(tmp_path / "data")
    other = world.run(tmp_path / "run", tmp_path / "data", reward=REWARDS, evaluation={"exclude_history": True})
    other.decide()
    for name in ("weights.json", "validation.parquet"):
        assert (run.path("fuse/sft") / name).read_bytes() == (other.path("fuse/sft") / name).read_bytes()


def values(**means: float) -> dict[str, np.ndarray]:
    """200 users each, whose NDCG@10 has these means and a spread of its own."""
    return {
        name: mean + np.random.default_rng(place).normal(0, 0.1, 200)
        for place, (name, mean) in enumerate(means.items())
    }


def chosen(found: dict[str, NDArray[np.float64]], took: dict[str, float], budget: float | None = None) -> Choice:
    return choose(found, all_pairs(found), took, budget)


def test_a_simpler_list_is_chosen_where_it_can_lose_little_and_the_best_one_else() -> None:
    found = values(item_knn=0.31, sft=0.31, fuse=0.31)
    took = dict.fromkeys(found, 1.0)
    # nothing is known to a hundredth of .31 from 200 users whose values differ by .14: the best is taken, and said so
    alone = {name: found[name] for name in ("item_knn", "sft")}
    best = max(alone, key=lambda name: alone[name].mean())
    unclear = chosen(alone, took)
    assert unclear.chosen == best and "; not significantly below it: " in unclear.why
    # item_knn differs from fuse by a thousandth of it: loses at most a hundredth
    near = found | {"item_knn": found["fuse"] * 0.999, "sft": found["fuse"] - 0.1}
    assert chosen(near, took).chosen == "item_knn" and "nothing simpler does" in chosen(near, took).why
    assert choose(near, all_pairs(near), took, None, margin=0.0005).chosen == "fuse"
    # where nothing is known, the combination is taken, though another has the highest mean
    for other in ("item_knn", "sft"):
        highest = max(one.mean() for one in found.values())
        higher = found | {other: found[other] - found[other].mean() + highest + 0.001}
        unknown = chosen(higher, took)
        assert (unknown.chosen, unknown.best) == ("fuse", other)
        assert unknown.why.startswith(
            f"it combines what the others are made of, and is not significantly below {other}"
        )
        assert chosen(higher, took | {"fuse": 9.0}, 5.0).chosen == other
    surely = found | {"sft": found["fuse"] + 0.01}
    assert chosen(surely, took).chosen == "sft"
    far = near | {"item_knn": found["fuse"] - 0.1}
    assert chosen(far, took) == ("fuse", "fuse", "the highest NDCG@10 on validation, significantly above every other")


def test_among_equal_lists_something_false_is_said_in_one_of_twenty() -> None:
    """The labels of seven lists are permuted within each case, so that none is better; hits are rare and skewed."""
    generator, said, trials = np.random.default_rng(3), 0, 400
    names = ["popularity", "item_knn", "ranker", "sft", "rerank", "fuse", "nll+fuse"]
    for _ in range(trials):
        hits = (generator.random((7, 300)) < 0.1) / np.log2(1 + generator.integers(1, 11, (7, 300)))
        hits[:, :100] = 0.0  # users whom no list serves
        found = dict(zip(names, generator.permuted(hits, axis=0), strict=True))
        said += any(pair.low > 0 for pair in all_pairs(found, draws=1000).values())
    # .05 and two standard errors of a share of 400
    assert said / trials <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / trials)


def test_nothing_slower_than_the_budget_is_chosen_and_where_all_are_nothing_is_decided() -> None:
    found = values(sft=0.1, fuse=0.5)
    quick = chosen(found, {"sft": 4.0, "fuse": 9.0}, 5.0)
    assert quick.chosen == "sft" and "of the lists that take at most 5 ms" in quick.why
    says = r"^--budget-ms 1: no list that may be taken takes so little; the quickest, sft, takes 4 ms$"
    with pytest.raises(UserError, match=says):
        chosen(found, {"sft": 4.0, "fuse": 9.0}, 1.0)


def test_a_budget_that_no_list_meets_leaves_the_last_decision_as_it_is(
    decided: tuple[Run, dict[str, Any]], tmp_path: Path
) -> None:
    copied = run_copy(decided[0], tmp_path)
    before = (copied / "decision.json").read_bytes()
    said = command("decide", "--run", copied, "--budget-ms", "1e-9", "--quiet")
    assert said.status == 2 and said.err.startswith("adagrpo: --budget-ms 1e-09: no list that may be taken takes so")
    assert said.err.count("\n") == 1 and (copied / "decision.json").read_bytes() == before


class Machine:
    """A clock, and lists that take turns on it: each costs its own milliseconds, and those of other work in between."""

    def __init__(self, costs: dict[str, float], busy: list[float]) -> None:
        self.costs, self.busy = costs, busy
        self.wall = self.processor = 0.0
        self.asked: list[str] = []

    def recommenders(self, names: list[str]) -> Any:
        for name in names:
            yield name, SimpleNamespace(recommend=partial(self.recommend, name))

    def recommend(self, name: str, queries: list[Query]) -> None:
        cost = (self.costs[name] + queries[0].history[0]) / 1000
        self.processor += cost
        self.wall += cost + self.busy[len(self.asked) % len(self.busy)] / 1000
        self.asked.append(name)


@pytest.mark.parametrize("busy", [[0.0], [0.0, 30.0, 5.0, 30.0, 9.0], [40.0] * 9 + [0.0] * 9 + [25.0] * 9])
def test_other_work_on_the_machine_does_not_change_what_a_list_takes(
    busy: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine({"item_knn": 2.0, "fuse": 6.0}, busy)
    users = np.arange(6, dtype=np.int32)
    clock = {"perf_counter": lambda: machine.wall, "process_time": lambda: machine.processor}
    histories = Ragged.of(np.array([9, 9, 9, 1, 2, 5], dtype=np.int32), np.ones(6, dtype=np.int64))  # ms each adds
    monkeypatch.setattr("adagrpo.pipeline.decide.time", SimpleNamespace(**clock))
    monkeypatch.setattr("adagrpo.pipeline.decide.sample_cases", lambda *_: Cases(users, histories, users))
    monkeypatch.setattr("adagrpo.pipeline.decide.WARM_UP", 3)
    monkeypatch.setattr("adagrpo.pipeline.decide.ROUNDS", 7)
    asked = partial(RunData.queries_of, SimpleNamespace(user_ids=list(range(6))))  # type: ignore[arg-type]
    data = SimpleNamespace(cases=lambda split: None, config=SimpleNamespace(seed=0), queries_of=asked)
    found = _milliseconds(dict(machine.recommenders(["item_knn", "fuse"])), data)  # type: ignore[arg-type]
    assert found["item_knn"] == pytest.approx((4, 4)) and found["fuse"] == pytest.approx((8, 8))
    assert machine.asked == (["item_knn"] * 3 + ["fuse"] * 3) * 8


def test_lists_share_what_they_are_made_from(decided: tuple[Run, dict[str, Any]]) -> None:
    maker = ListMaker(Models(RunData(decided[0])))
    assert maker.source("item_knn") is maker.source("item_knn")
    fused = [maker.order(parse_list(name)).fusion for name in ("fuse", "fuse-without-reward")]
    assert fused[0].sources["ranker"] is fused[1].sources["ranker"]  # type: ignore[union-attr]


@pytest.mark.parametrize("budget", [0.0, -1.0, float("inf"), float("nan")])
def test_a_budget_that_is_none_is_refused(finished: Path, budget: float) -> None:
    with pytest.raises(UserError, match="--budget-ms"):
        Run.open(finished).decide(budget)


def test_a_list_with_weights_of_its_own_takes_no_other(decided: tuple[Run, dict[str, Any]]) -> None:
    run, _ = decided
    with pytest.raises(UserError, match="has weights of its own"):
        run.recommend([[3]], arm="fuse", reward_weight=1.0)


def test_re_ranked_by_name_takes_the_weight_that_validation_chose(decided: tuple[Run, dict[str, Any]]) -> None:
    run, _ = decided
    known = json.loads(run.path("reranking/weight.json").read_text(encoding="utf-8"))
    assert run.recommend([[3]], arm="rerank").about["reward_weight"] == known["rerank"]


@pytest.mark.slow
def test_fused_lists_are_arms_of_a_comparison(world: Any, data: Path, tmp_path: Path) -> None:
    config = Config.model_validate(world.recipe(reward=REWARDS, compare={"metric": "ndcg@10", "margins": {}}))
    arms = ["nll", "rerank", "fuse", "nll+fuse", "nll+rerank"]
    content = Comparison(tmp_path / "compared", config, data, objectives=arms, seeds=[0]).carry_out()
    points = [(row["arm"], row["checkpoint"]) for row in content["rows"]]
    assert {("fuse", "best"), ("nll+fuse", "best"), ("nll", "final")} <= {*points} and (
        "nll+fuse",
        "final",
    ) not in points
    rows = [json.loads(line) for line in (tmp_path / "compared/results.jsonl").read_text().splitlines()]
    assert {row["objective"] for row in rows if row["arm"] == "nll+fuse"} == {"fuse"}


def test_lists_are_arms_of_an_experiment(decided: tuple[Run, dict[str, Any]], tmp_path: Path) -> None:
    run, _ = decided
    arms = {"now": {"serves": "sft"}, "knn": {"serves": "item_knn"}, "new": {"serves": "fuse"}}
    start = datetime.now(UTC).date().isoformat()
    plan = {"name": "lists", "arms": arms, "control": "now", "salt": "2026-11", "start": start, "days": 3}
    metrics = {"answers": {"sum": "answers"}}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan | {"metrics": metrics}), encoding="utf-8")
    trial = LiveExperiment(tmp_path / "plan.yaml")
    wanted = _Wanted(Run.open(run.directory), ListOptions())
    served = dict(zip(trial.arms(), wanted.load_arms(Operation(), trial), strict=True))
    for name, arm in arms.items():
        expected = run.recommend([[3, 13]], arm=arm["serves"]).items[0]
        recommender = served[name].recommender
        history = recommender.known([3, 13])[0]
        assert recommender.recommend([Query(history)])[0].items[:10] == expected
        assert served[name].versions["arm"] == f"{arm['serves']}/best"


@pytest.mark.slow
def test_the_version_of_a_list_changes_with_anything_that_it_is_made_of(
    decided: tuple[Run, dict[str, Any]], world: Any, data: Path, tmp_path: Path
) -> None:
    def model(run: Run, name: str) -> str:
        return str(recommender(run, ListOptions(name))[1]["versions"]["model"])

    names = ("sft", "item_knn", "ranker", "fuse", "reward-2")
    before = [model(decided[0], name) for name in names]
    assert len({*before}) == len(names)
    other = {"kind": "weighted", "members": [FEATURE, {"kind": "noise", "seed": 9}]}
    changed = world.run(
        run_copy(decided[0], tmp_path),
        data,
        reward=other,
        evaluation={"exclude_history": True},
        ranker={"width": 8, "fit": {"epochs": 1}},
    )
    changed.complete()
    changed.decide()
    after = [model(Run.open(changed.directory), name) for name in names]
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, True, False, False, False]


@pytest.mark.slow
def test_a_re_ranked_list_is_not_served_with_the_weight_of_another_reward(
    world: Any, data: Path, tmp_path: Path
) -> None:
    run: Run = world.run(tmp_path / "run", data, reward=REWARDS)
    run.complete()
    for kind in ("best", "final"):
        name = f"evaluate/nll+rerank/{kind}"
        make(run, name, re_rankings("nll+rerank")[name](run))
        served = recommender(run, ListOptions("nll+rerank", kind))[1]  # type: ignore[arg-type]
        assert served["reward_weight"] == json.loads((run.path(name) / "metrics.json").read_text("utf-8"))["weight"]
    changed = Run.open(run.directory, {"reward.weights": [1.0, -1000.0]})
    make(changed, STAGE, reranking(changed))
    with pytest.raises(UserError, match=r"evaluate/nll\+rerank/best reads it too, .*`adagrpo compare`"):
        recommender(changed, ListOptions("nll+rerank"))


def test_a_run_about_another_catalogue_decides_nothing(decided: tuple[Run, dict[str, Any]], tmp_path: Path) -> None:
    run = Run.open(run_copy(decided[0], tmp_path))
    run.update_catalog(delist=[143])
    other = Run.open(run.directory, out=tmp_path / "other")
    evaluate_with(other, "latest")
    with pytest.raises(UserError, match="is about version 1 of the catalogue"):
        other.decide()


@pytest.mark.slow
def test_a_reward_that_is_a_sum_unknown_to_the_recipe_is_one_feature(world: Any, data: Path, tmp_path: Path) -> None:
    (tmp_path / "sums.py").write_text(SUM, encoding="utf-8")
    reward = {"kind": "factory", "function": "sums:made", "members": [FEATURE, {"kind": "noise"}]}
    run: Run = world.run(tmp_path / "run", data, reward=reward)
    run.code = tmp_path
    run.decide()
    weights = json.loads((run.path("fuse", "sft") / "weights.json").read_text(encoding="utf-8"))
    assert "reward" in weights["fuse"]["weights"]


class Hanging:
    """A reward that gives no scores."""

    def score(self, histories: Any, items: Any) -> Any:
        raise RuntimeError("down")


def test_a_fused_list_without_its_reward_is_the_one_fitted_without_and_says_so(
    decided: tuple[Run, dict[str, Any]],
) -> None:
    run, _ = decided
    served = _Wanted(Run.open(run.directory), ListOptions("fuse")).load(Operation())
    history = served.recommender.known([3, 13])[0]
    whole = served.answer([Asked(served, Query(history))])[0]
    assert whole.reranked and whole.degraded is None and served.degraded is None
    served.recommender.reward = CircuitBreaker(Hanging())
    without = served.answer([Asked(served, Query(history))])[0]
    assert without.degraded == "reward: raised RuntimeError" == served.degraded and not without.reranked
    assert without.list.items[:10] == run.recommend([[3, 13]], arm="fuse-without-reward", as_measured=True).items[0]


def test_a_service_starts_while_the_reward_fails_and_what_is_written_for_later_does_not(
    decided: tuple[Run, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*given: Any) -> Any:
        raise RuntimeError("our database is down")

    wanted = _Wanted(Run.open(decided[0].directory), ListOptions("fuse"))
    with monkeypatch.context() as patch:
        patch.setattr(FeatureReward, "score", down)
        served = wanted.load(Operation())
        assert served.degraded == "reward: raised RuntimeError" and served.about["reward_weight"] is None
        with pytest.raises(RuntimeError):
            recommender(Run.open(wanted.run.called), wanted.asked)
    history = served.recommender.known([3, 13])[0]
    assert served.answer([Asked(served, Query(history))])[0].degraded is None  # asked again, and back


def test_a_reward_alone_that_fails_leaves_the_list_of_the_policy_and_says_so(
    decided: tuple[Run, dict[str, Any]],
) -> None:
    run, _ = decided
    served = _Wanted(Run.open(run.directory), ListOptions("reward-1")).load(Operation())
    history = served.recommender.known([3, 13])[0]
    served.recommender.reward = CircuitBreaker(Hanging())
    answer = served.answer([Asked(served, Query(history))])[0]
    assert answer.degraded == "reward: raised RuntimeError" and not answer.reranked
    assert answer.list.items[:10] == run.recommend([[3, 13]], arm="sft").items[0]


def test_a_reward_alone_orders_the_whole_catalogue(decided: tuple[Run, dict[str, Any]]) -> None:
    run, _ = decided
    reward = Models(RunData(run)).reward_of(FeatureOptions(name="next_last"))
    served = _Wanted(Run.open(run.directory), ListOptions("reward-1")).load(Operation()).recommender
    history = served.known([3, 13])[0]
    histories = Histories(torch.tensor([history]), torch.tensor([len(history)]))
    scores = reward.score(histories, torch.arange(len(served.item_ids))[None])[0]
    scores[history] = -torch.inf
    found = served.recommend([Query(history)])[0]
    assert found.scores == pytest.approx(scores.sort(descending=True).values[: len(found.scores)].tolist())


def test_a_reward_that_the_run_does_not_have_is_refused(decided: tuple[Run, dict[str, Any]]) -> None:
    for name in ("reward", "reward-3"):
        with pytest.raises(UserError, match=f"--arm {name}: no reward of this run; it has reward-1, reward-2"):
            decided[0].recommend([[3]], arm=name)


@pytest.mark.slow
def test_a_reward_alone_that_takes_too_long_is_not_measured_and_the_decision_says_so(
    decided: tuple[Run, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.open(run_copy(decided[0], tmp_path))
    monkeypatch.setattr("adagrpo.pipeline.decide.MOST_SECONDS", 0.0)
    shutil.rmtree(run.path("evaluate", "reward-2"))
    content = run.decide(train=True)
    assert "reward-2" not in [row["list"] for row in content["contenders"]]
    assert any(doubt.startswith("reward-2 was not measured: it takes ") for doubt in content["doubts"])
    with pytest.raises(UserError, match="--control reward-2: was not measured"):
        run.decide(train=True, control="reward-2")


@pytest.mark.slow
def test_a_delisted_item_is_in_no_list(decided: tuple[Run, dict[str, Any]], tmp_path: Path) -> None:
    shutil.copytree(decided[0].directory, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    gone = run.recommend([[3, 13]], arm="fuse").items[0][0]
    run.update_catalog(delist=[gone])
    for name in ("fuse", "item_knn", "popularity", "ranker", "reward-1"):
        assert gone not in run.recommend([[3, 13]], arm=name).items[0]
    first, *_, last = run.recommend([[3, 13]], arm="fuse").items[0]
    assert run.recommend([[3, 13]], arm="fuse", include={"item_id": [last, first]}).items[0] == [first, last]


@pytest.mark.slow
def test_a_version_of_the_catalogue_that_the_decision_leaves_behind_is_named(
    decided: tuple[Run, dict[str, Any]], tmp_path: Path
) -> None:
    folder = run_copy(decided[0], tmp_path)
    run = Run.open(folder)
    run.update_catalog(delist=[run.recommend([[3, 13]], arm="fuse").items[0][0]])
    assert not any("of the catalogue" in doubt for doubt in run.decide()["doubts"])
    Run.open(folder, ["tokenizer.codes=24"]).tokenize()
    again = Run.open(folder).decide()
    assert any(doubt.startswith("version 1 of the catalogue was made of") for doubt in again["doubts"])


def test_what_was_decided_is_what_is_served_without_a_name(decided: tuple[Run, dict[str, Any]]) -> None:
    run, _ = decided
    about = run.recommend([[3]]).about
    assert about["arm"] == json.loads(run.path("decision.json").read_text(encoding="utf-8"))["chosen"]
    assert about["why"] == "what `adagrpo decide` chose, refit on all interactions" and about["refit"]
