"""Cross-fitting and the RL split through the stages: what a fold never sees, what is made again, what judges whom."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from adagrpo.console import Silent
from adagrpo.errors import UserError
from adagrpo.pipeline import (
    Run,
    evaluate_with,
    update_catalog,
)
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from research.exposure_bias.gates import gates_of

USER = "u17"
OFF: dict[str, Any] = {"ranker": {"fit": {"checkpoint_seconds": 0}}}
FOLDS: dict[str, Any] = {"ranker": {"fit": {"checkpoint_seconds": 0}, "folds": 2}}


def weights(run: Any, fold: int) -> bytes:
    return bytes(run.path("ranker", f"fold-{fold}", "final", "model.safetensors").read_bytes())


def best(run: Any, fold: int) -> bytes:
    return bytes(run.path("ranker", f"fold-{fold}", "best", "model.safetensors").read_bytes())


def made(run: Any) -> set[str]:
    rows = (json.loads(line) for line in run.path("events.jsonl").read_text(encoding="utf-8").splitlines())
    return {row["stage"] for row in rows if row["event"] == "end"}


@pytest.fixture(scope="module")
def folded(world: Any, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run with two folds up to the rankers."""
    run = world.run(tmp_path_factory.mktemp("folded") / "run", data, **FOLDS)
    for stage in (Run.prepare, Run.tokenize, Run.sft, Run.ranker):
        stage(run)
    return run


def test_a_folds_ranker_does_not_depend_on_its_users(folded: Any, world: Any, tmp_path: Path) -> None:
    """One training and one validation item of a user are exchanged for others: the user's fold keeps its bytes."""
    models = Models(RunData(folded))
    ids = sorted(world.sequences)
    own = int(models.data.fold_of_user[ids.index(USER)])
    unseen = [item for item in range(3, 300, 10) if item not in world.sequences[USER]]
    world.changed(USER, 1, unseen[0]).changed(USER, -2, unseen[1]).write(tmp_path / "data")
    run = world.run(tmp_path / "run", tmp_path / "data", **FOLDS)
    for stage in (Run.prepare, Run.ranker):
        stage(run)
    assert (run.path("prepare", "items.parquet").read_bytes()) == folded.path("prepare", "items.parquet").read_bytes()
    for read in (weights, best):
        assert read(run, own) == read(folded, own) and read(run, 1 - own) != read(folded, 1 - own)
    assert weights(folded, 0) != weights(folded, 1)


def test_post_training_is_scored_by_the_users_fold(folded: Any) -> None:
    models = Models(RunData(folded))
    batch = models.schedule(folded.config.train.fit).batches(0)[0]
    items = torch.arange(10).repeat(len(batch.users), 1)
    actual = models.group_reward().score(batch.histories, items)
    rankers = [models.ranker(folded.path("ranker", f"fold-{fold}", "best")) for fold in range(2)]
    whole = models.ranker(folded.path("ranker", "best")).score(batch.histories, items)
    assert set(models.data.fold_of_user[batch.users]) == {0, 1}
    for row, user in enumerate(batch.users):
        scores = [ranker.score(batch.histories, items)[row] for ranker in rankers]
        fold = models.data.fold_of_user[user]
        torch.testing.assert_close(actual[row], scores[fold], rtol=1e-5, atol=1e-6)
        for other in (scores[1 - fold], whole[row]):
            assert not torch.allclose(actual[row], other, rtol=1e-3)


def test_a_fold_is_resumed_and_only_what_reads_it_is_made_again(folded: Any, world: Any, data: Path) -> None:
    class Killer(Silent):
        def progress(self, label: str, done: int, total: int, values: Any) -> None:
            if label == "ranker/fold-1":
                steps.append(done)
                if stop and done == stop:
                    raise KeyboardInterrupt

    steps: list[int] = []
    before, stop = weights(folded, 1), 2
    folded.path("ranker", "fold-1").rename(folded.path("ranker", "gone"))
    folded.path("events.jsonl").unlink()
    with pytest.raises(KeyboardInterrupt):
        world.run(folded.directory, data, console=Killer(), **FOLDS).ranker()
    stop = 0
    world.run(folded.directory, data, console=Killer(), **FOLDS).ranker()
    assert steps[:2] == [1, 2] and steps[2:] == [*range(3, steps[-1] + 1)] and steps[-1] > 3
    assert weights(folded, 1) == before and made(folded) == {"ranker/fold-1"}
    world.run(folded.directory, data, **OFF).ranker()  # without folds the ranker of all users is as good as it was
    assert made(folded) == {"ranker/fold-1"}


def test_an_arm_depends_on_the_folds_and_nll_does_not(folded: Any, world: Any, data: Path) -> None:
    run = world.run(folded.directory, data, **FOLDS)
    off = world.run(folded.directory, data, **OFF)
    for one, expected in ((off, True), (off, False), (run, True), (run, False)):
        one.path("events.jsonl").unlink()
        for arm in off.config.train.arms:
            one.stage(f"train/{arm.name}")
        # NLL is made once, by the run that came first
        assert made(one) - {"train/nll"} == ({"train/adagrpo"} if expected else set())
    assert "train/nll" not in made(run)


def test_the_report_holds_every_stratum(folded: Any) -> None:
    folded.stage("ranker/report")
    report = json.loads(folded.path("ranker", "report", "report.json").read_text(encoding="utf-8"))
    cases = {}
    for row in report["strata"]:
        assert row["auc"]["low"] <= row["auc"]["mean"] <= row["auc"]["high"]
        assert row["ece"] >= 0 and "true_correlation" not in row
        cases[row["by"]] = cases.get(row["by"], 0) + row["cases"]
    assert cases == dict.fromkeys(("all", "item popularity", "history length", "policy difficulty"), 60)
    assert sum(row["cases"] for row in report["calibration"]) == 60


def test_too_many_folds_for_the_users_are_refused(world: Any, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(
        "user_id,item_id,timestamp\n" + "".join(f"a,{i},{i}\n" for i in range(5)) + "b,1,1\nb,2,2\n",
        encoding="utf-8",
    )
    run = world.run(tmp_path / "run", tmp_path, ranker={"folds": 2})
    run.prepare()
    with pytest.raises(
        UserError, match="no user of a validation case is among those it is fitted on; take fewer folds"
    ):
        run.ranker()


@pytest.mark.slow
def test_sft_depends_on_the_split_and_not_on_its_nll(world: Any, copied: Path, data: Path) -> None:
    def again(**train: Any) -> set[str]:
        (copied / "events.jsonl").unlink()
        run = world.run(copied, data, train=train)
        run.sft()
        for arm in run.config.train.arms:
            run.stage(f"train/{arm.name}")
        return made(run)

    assert again(rl_split=0.0, rl_split_nll=False) == set()
    assert again(rl_split=0.3) == {"sft", "train/nll", "train/adagrpo"}
    assert again(rl_split=0.3, rl_split_nll=False) == {"train/nll", "train/adagrpo"}


# ---------------------------------------------------------------- a world with a truth


@pytest.fixture(scope="module")
def market(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:

    folder = tmp_path_factory.mktemp("market")
    run = world.run(
        folder / "run",
        folder,
        data={"logs": [], "marketplace": {"users": 80, "items": 100}},
        objective={"num_generations": 4, "tau": 0.25, "tau_reward": 0.75, "rho": 0.25},
        train={"arms": [{"objective": "adagrpo"}, {"objective": "adagrpo", "gate": "oracle"}]},
    )
    for stage in (Run.prepare, Run.tokenize, Run.sft, Run.ranker):
        stage(run)
    return run


def test_only_the_oracle_reads_the_truth(market: Any, tmp_path: Path) -> None:
    plain, oracle = market.config.train.arms
    market.stage(f"train/{oracle.name}")
    rows = market.path("train", "adagrpo-oracle", "steps.jsonl").read_text(encoding="utf-8").splitlines()
    assert 0 < np.mean([json.loads(row)["admission"] for row in rows]) < 1
    truth = market.path("simulate", "truth")
    truth.rename(tmp_path / "truth")
    try:
        market.stage(f"train/{plain.name}")  # there is none to read
        with pytest.raises(UserError, match="not a truth folder"):
            market.stage(f"train/{oracle.name}")
    finally:
        (tmp_path / "truth").rename(truth)


def test_the_report_of_a_marketplace_knows_the_truth(market: Any) -> None:
    market.stage("ranker/report")
    report = json.loads(market.path("ranker", "report", "report.json").read_text(encoding="utf-8"))
    assert isinstance(report["calibration"], str) and "not a probability" in report["calibration"]
    assert {"item exposure", "item popularity"} < {row["by"] for row in report["strata"]}
    whole = report["strata"][0]
    assert whole["by"] == "all" and -1 <= whole["true_correlation"]["mean"] <= 1


def test_every_gate_of_the_study_is_read_on_the_same_groups(market: Any) -> None:
    models = Models(RunData(market))
    found = gates_of(models, models.reward())
    accuracy, share = found["pairwise_accuracy"], found["admitted"]
    assert share + found["easy"] + found["undiscriminated"] + found["degenerate"] == pytest.approx(1)
    counted = {name: accuracy[name]["users"] for name in ("admitted", "rejected", "all")}
    assert counted["admitted"] + counted["rejected"] == counted["all"] and 0 < share < 1
    both = sum(accuracy[name]["mean"] * counted[name] for name in ("admitted", "rejected")) / counted["all"]
    assert both == pytest.approx(accuracy["all"]["mean"])
    gates = found["gates"]
    assert gates["adagrpo"]["admitted"] == share
    for outcome in ("admitted", "rejected"):
        assert gates["adagrpo"]["pairwise_accuracy"][outcome] == accuracy[outcome]
    right = gates["oracle"]["pairwise_accuracy"]
    assert right["admitted"]["mean"] >= 0.75 > right["rejected"]["mean"]  # by its definition, ties of reward aside
    assert gates["shuffled"]["admitted"] == pytest.approx(found["admitted_if_shuffled"])
    assert gates["random"]["admitted"] == share  # as many as the gate, in every step
    assert gates["all"]["admitted"] == pytest.approx(1 - found["degenerate"])


def test_the_truth_is_not_asked_about_items_that_came_after_training(market: Any, tmp_path: Path) -> None:
    run = Run.open(Path(shutil.copytree(market.directory, tmp_path / "run")))
    items = pl.read_parquet(run.path("simulate", "items.parquet"))
    items.head(1).with_columns(item_id=pl.lit("new")).write_parquet(tmp_path / "new.parquet")
    update_catalog(run, items=tmp_path / "new.parquet")
    later = Run.open(run.directory, out=tmp_path / "later")
    evaluate_with(later, "latest")
    report = json.loads((later.stage("ranker/report") / "report.json").read_text(encoding="utf-8"))
    assert not any("true_correlation" in row for row in report["strata"])


def test_an_oracle_needs_a_simulated_world(folded: Any, world: Any, data: Path) -> None:
    run = world.run(folded.directory, data, train={"arms": [{"objective": "adagrpo", "gate": "oracle"}]})
    with pytest.raises(UserError, match="only a simulated marketplace"):
        run.stage(f"train/{run.config.train.arms[0].name}")


def test_a_share_of_the_users_is_all_that_the_rankers_see(folded: Any, world: Any, tmp_path: Path) -> None:
    """One training item of a user is exchanged for another: who is withheld changes no byte of either ranker."""
    pytest.importorskip("lightgbm")
    half: dict[str, Any] = {"ranker": {"user_share": 0.5}, "reward": {"kind": "lambdarank"}}
    actual = {}
    for name, changes in (("plain", ()), ("withheld", (0,)), ("seen", (1,))):
        moved = world
        if changes:
            withheld = RunData(world.run(folded.directory, folded.data, **half)).withheld
            assert 0.2 < withheld.mean() < 0.8
            user = sorted(world.sequences)[int(np.flatnonzero(withheld != bool(changes[0]))[3])]
            unseen = next(item for item in range(3, 300, 10) if item not in world.sequences[user])
            moved = world.changed(user, 1, unseen)
        moved.write(tmp_path / name / "data")
        run = world.run(tmp_path / name / "run", tmp_path / name / "data", **half)
        for stage in (Run.prepare, Run.ranker):
            stage(run)
        files = ("ranker/best/model.safetensors", "ranker/lambdarank/model.txt")
        actual[name] = [run.path(file).read_bytes() for file in files]
    assert actual["plain"] == actual["withheld"]
    assert actual["plain"][0] != actual["seen"][0] and actual["plain"][1] != actual["seen"][1]
