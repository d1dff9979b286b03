"""Rewards of one's own through the stages: what is pinned, what is refused, and what survives a reward that fails."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from adagrpo.config import Config, load_config
from adagrpo.console import Silent
from adagrpo.errors import ServiceError, UserError
from adagrpo.pipeline import ListOptions, Run
from adagrpo.pipeline.compare import Comparison
from adagrpo.pipeline.description import describe
from adagrpo.pipeline.directory import path_of
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.serve import Operation, _Wanted, recommender
from adagrpo.pipeline.status import status
from adagrpo.rewards.reranking import within_list_std
from adagrpo.types import Histories

from ..command_line import command
from ..consoles import Heard

# items are 3, 13, .. 293 on a ring; what comes soon after the last one is good
RING = """
def ahead(histories, candidates):
    rows = zip(histories, candidates, strict=True)
    return [[-float((item - history[-1]) % 300) / 100 for item in row] for history, row in rows]


def flat(histories, candidates):
    return [[7.0] * len(row) for row in candidates]


def ends(histories, candidates):
    raise SystemExit(3)


def dies(histories, candidates):
    raise RuntimeError("no model\\nhere")
"""
# counts in what it is given, with nothing but the ids of the logs
FITTED = """
from functools import cache

import polars as pl


@cache
def counts(path):
    return dict(pl.read_parquet(path)["item_id"].value_counts().iter_rows())


def popular(histories, candidates, training_logs):
    return [[counts(training_logs).get(item, 0) for item in row] for row in candidates]


class Popular:
    def __init__(self, models):
        self.scores = [counts(models.training_logs).get(item, 0) for item in models.data.item_ids.to_list()]

    def score(self, histories, items):
        import torch

        return torch.tensor(self.scores).float()[items.clamp(min=0)]


def make(models, members):
    return Popular(models)
"""
FAST: dict[str, Any] = {"train": {"arms": [{"objective": "nll"}, {"objective": "adagrpo"}]}}


def module(folder: Path, name: str, content: str = RING) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.py"
    path.write_text(content, encoding="utf-8")
    return path


def made(run: Run) -> list[str]:
    rows = (json.loads(line) for line in run.path("events.jsonl").read_text(encoding="utf-8").splitlines())
    return [row["stage"] for row in rows if row["event"] == "end"]


def again(run: Run, directory: Path, world: Any, data: Path, **changes: Any) -> Run:
    """The same run with changed settings, and nothing in its log."""
    run.path("events.jsonl").unlink(missing_ok=True)
    result: Run = world.run(directory, data, **changes)
    result.code = run.code
    return result


def test_a_callable_is_the_reward_of_every_stage(copied: Path, world: Any, data: Path, tmp_path: Path) -> None:
    path = module(tmp_path / "code", "ring_a")
    run: Run = world.run(copied, data, reward={"kind": "callable", "function": "ring_a:ahead"})
    run.code = tmp_path / "code"
    run.path("events.jsonl").unlink()
    run.complete()
    metrics = run.results
    # nothing below the reward is made again, and continued NLL has none
    assert made(run)[0] == "reward" and not {"sft", "ranker", "train/nll"} & set(made(run))
    assert {"train/adagrpo", "evaluate/sft", "ranker/report"} < set(made(run))
    described = yaml.safe_load(run.path("run.yaml").read_text(encoding="utf-8"))
    assert described["code_directory"] == str(tmp_path / "code")
    assert metrics["reward"] == described["reward"]
    assert metrics["reward"]["kind"] == "callable"
    assert list(metrics["reward"]["files"]) == ["ring_a.py", "reward/reward.json"]
    report = json.loads(run.path("ranker/report/report.json").read_text(encoding="utf-8"))
    assert report["loss"] == "callable" and report["strata"][0]["auc"]["mean"] > 0.7  # users walk along the ring
    result = run.diagnose().content
    assert result["orders"]["ranker"] == pytest.approx(
        {name: metrics["ranker"]["rerank"]["validation"]["reward"][name] for name in result["orders"]["ranker"]}
    )
    # opened again, it finds the module where it was; another content of the module is another reward
    opened = Run.open(copied)
    assert opened.code == tmp_path / "code"
    opened.path("events.jsonl").unlink()
    opened.train(anyway=True)  # the verdict on so few users hangs on their start
    assert made(opened) == []
    path.write_text(RING + "\n# changed\n", encoding="utf-8")
    opened.train(anyway=True)
    assert made(opened) == ["reward", "train/adagrpo"]


@pytest.mark.parametrize(("kind", "name"), [("callable", "popular"), ("factory", "make")])
def test_a_function_gets_the_logs_as_far_as_training_goes(
    finished: Path, world: Any, data: Path, tmp_path: Path, kind: str, name: str
) -> None:
    module(tmp_path, f"fitted_{kind}", FITTED)
    run: Run = world.run(finished, data, reward={"kind": kind, "function": f"fitted_{kind}:{name}"})
    run.code = tmp_path
    models = Models(RunData(run))
    training = models.data.training
    items = torch.arange(models.data.num_items).unsqueeze(0)
    scores = models.reward().score(Histories(torch.tensor([[0]]), torch.tensor([1])), items)
    assert scores[0].tolist() == training.counts(models.data.num_items).tolist()


def test_the_reward_that_judges_is_the_one_of_the_configuration(copied: Path, world: Any, data: Path) -> None:
    checkpoint = str(copied / "ranker/final")
    members = [{"kind": "sequential"}, {"kind": "sequential", "checkpoint": checkpoint}]
    options = {"kind": "weighted", "weights": [2.0, -1.0], "members": members}
    models = Models(RunData(world.run(copied, data, reward=options)))
    histories, items = Histories(torch.tensor([[1, 2]]), torch.tensor([2])), torch.arange(30).unsqueeze(0)
    best, final = (models.ranker(copied / "ranker" / kind).score(histories, items) for kind in ("best", "final"))
    for reward in (models.reward(), models.group_reward()):
        torch.testing.assert_close(reward.score(histories, items), 2 * best - final)
    assert [path_of(models.run, file).parent.name for file in models.group_reward_files] == ["best", "final"]


def test_the_look_keeps_the_spread_of_every_member(copied: Path, world: Any, data: Path, tmp_path: Path) -> None:
    module(tmp_path, "ring_b")
    member = {"kind": "callable", "function": "ring_b:ahead"}
    options = {"kind": "weighted", "weights": [10.0, 0.0], "members": [member, {"kind": "sequential"}]}
    run: Run = world.run(copied, data, reward=options)
    run.code = tmp_path
    run.train()
    look = json.loads(run.path("reward/reward.json").read_text(encoding="utf-8"))
    assert look["cases"] == 60 and len(look["members"]) == 2
    assert look["spread"] == pytest.approx(10 * look["members"][0], rel=1e-5) and look["spread"] > 1


@pytest.mark.slow
def test_a_sum_without_weights_has_every_member_in_units_of_its_spread_within_a_list(
    copied: Path, world: Any, data: Path
) -> None:
    members = [{"kind": "feature", "name": "popularity"}, {"kind": "noise"}]
    run: Run = world.run(copied, data, reward={"kind": "weighted", "members": members})
    run.decide()
    models, content = Models(RunData(run)), json.loads(run.path("reranking/weight.json").read_text(encoding="utf-8"))
    cases = models.data.cases("validation")
    beams = models.predict(models.policy(run.path("sft/best")), cases, None)
    apart = [models.score_lists(member, cases, beams.items).astype(np.float64) for member in models.members()]
    spreads = [np.sqrt(np.nanvar(np.where(beams.items < 0, np.nan, one), axis=1).mean()) for one in apart]
    assert content["members"] == pytest.approx(spreads)
    summed = models.score_lists(models.reward(), cases, beams.items)
    np.testing.assert_allclose(summed, sum(one / spread for one, spread in zip(apart, spreads, strict=True)), rtol=1e-5)
    served = recommender(run, ListOptions("rerank"))[0]
    assert served.within_list_std == content["spread"] == pytest.approx(within_list_std(beams.items, summed), rel=1e-5)
    assert run.diagnose().content["reranking"]["spread"] == pytest.approx(content["spread"], rel=1e-5)
    assert served.reward.weights == tuple(1 / spread for spread in content["members"])


def test_without_order_a_sum_needs_weights() -> None:
    data = {"split": {"kind": "impressions"}, "columns": {"clicked": "clicked"}}
    reward = {"kind": "weighted", "members": [{"kind": "feature"}, {"kind": "noise"}]}
    with pytest.raises(ValueError, match=r"reward\.weights are needed"):
        Config.model_validate({"name": "a", "data": {"logs": ["a.csv"], **data}, "reward": reward})


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("ring_c1:flat", "reward ring_c1:flat: gives every item of a case the same score"),
        ("ring_c2:dies", "reward ring_c2:dies: raised RuntimeError: no model here"),
        ("ring_c5:ends", "reward ring_c5:ends: raised SystemExit: 3"),
        ("ring_c3:missing", "ring_c3.py has no function 'missing'"),
        ("nowhere:f", "reward.function: no module 'nowhere'"),
    ],
)
def test_a_useless_reward_is_refused_before_anything_is_trained(
    copied: Path, world: Any, data: Path, tmp_path: Path, function: str, message: str
) -> None:
    module(tmp_path, function.partition(":")[0].replace("nowhere", "ring_c4"))
    run: Run = world.run(copied, data, reward={"kind": "callable", "function": function})
    run.code = tmp_path
    before = run.path("train/adagrpo/manifest.json").read_bytes()
    with pytest.raises(UserError) as caught:
        run.train()
    assert message in str(caught.value)
    assert run.path("train/adagrpo/manifest.json").read_bytes() == before


COUNTED = """
from pathlib import Path
LEFT = Path(__file__).with_name("left.txt")


def ahead(histories, candidates):
    left = int(LEFT.read_text())
    if left == 0:
        raise RuntimeError("gone")
    LEFT.write_text(str(left - 1))
    rows = zip(histories, candidates, strict=True)
    return [[-float((item - history[-1]) % 300) / 100 for item in row] for history, row in rows]
"""


@pytest.mark.parametrize("calls", [6, 7, 8])
def test_what_was_trained_before_a_failure_is_kept(
    copied: Path, world: Any, data: Path, tmp_path: Path, calls: int
) -> None:
    """Calls: three for the look, two a validation, one a step; with 7 and 8 one fails. No step is done twice."""
    module(tmp_path, f"counted_{calls}", COUNTED)
    settings: dict[str, Any] = {
        "reward": {"kind": "callable", "function": f"counted_{calls}:ahead"},
        "train": {
            "arms": [{"objective": "adagrpo"}],
            "fit": {"average": 0.9, "checkpoint_seconds": 1e9, "batch_size": 16, "validations": 2, "epochs": 1},
        },
    }

    def carry_out(left: int) -> Run:
        """As a command of its own, which remembers nothing of the one before."""
        (tmp_path / "left.txt").write_text(str(left), encoding="utf-8")
        run: Run = world.run(copied, data, console=Steps(), **settings)
        run.code = tmp_path
        run.train()
        return run

    class Steps(Silent):
        def progress(self, label: str, done: int, total: int, values: Any) -> None:
            if label == "adagrpo":
                steps.append(done)

    steps: list[int] = []
    run = carry_out(1000)
    whole = {name: run.path("train/adagrpo", name).read_bytes() for name in ("steps.jsonl", "validation.jsonl")}
    whole["weights"] = run.path("train/adagrpo/final/model.safetensors").read_bytes()
    run.path("train/adagrpo").rename(tmp_path / "whole")
    run.path("reward").rename(tmp_path / "look")
    expected, steps[:] = list(steps), []
    with pytest.raises(UserError, match="gone"):
        carry_out(calls)
    done = len(steps)
    carry_out(1000)
    actual = {name: run.path("train/adagrpo", name).read_bytes() for name in ("steps.jsonl", "validation.jsonl")}
    actual["weights"] = run.path("train/adagrpo/final/model.safetensors").read_bytes()
    assert actual == whole
    # a step whose validation failed was done and kept, and has not been reported a second time
    assert set(expected) - set(steps) <= {done + 1} and len(steps) == len(set(steps))


# ---------------------------------------------------------------- an endpoint, and the command line


def ring(service: Any, handler: Any, body: Any) -> None:
    rows = zip(body["histories"], body["candidates"], strict=True)
    scores = [[-((item - history[-1]) % 300) / 100 for item in row] for history, row in rows]
    service.reply(handler, json.dumps({"scores": scores}).encode())


def failing(how: str, after: int) -> Callable[..., None]:
    """Well for some requests, then one failure after another."""

    def behave(service: Any, handler: Any, body: Any) -> None:
        if len(service.requests) <= after:
            ring(service, handler, body)
        elif how == "slow":
            time.sleep(0.3)
            ring(service, handler, body)
        elif how == "500":
            service.reply(handler, b"broken", 500)
        elif how == "short":
            service.reply(handler, b'{"scores": [[1.0]]}')
        else:
            service.reply(
                handler, json.dumps({"scores": [[float("nan")] * len(c) for c in body["candidates"]]}).encode()
            )

    return behave


SAID = {
    "slow": "gave no answer in 0.1 seconds, in 2 attempts",
    "500": "answered status 500, in 2 attempts",
    "short": "answered 1 rows for",
    "nan": "answered nan for item",
}


def test_an_endpoint_fails_in_every_way_and_the_same_command_continues(copied: Path, service: Any) -> None:
    options = f"{{kind: http, url: '{service.url}', retries: 1, backoff_seconds: 0, timeout_seconds: 0.1}}"
    words = ["train", "--run", copied, "--quiet", "--set", f"reward={options}"]
    words += ["--set", "train.arms=[{objective: adagrpo}]"]
    weights = copied / "train/adagrpo/final/model.safetensors"
    before = weights.read_bytes()
    service.behaviour = ring
    assert command(*words).status == 0
    whole, asked = weights.read_bytes(), len(service.requests)
    assert whole != before
    for folder in ("reward", "train/adagrpo"):
        (copied / folder).rename(copied / folder.replace("/", "-"))
    furthest = 0
    # the look, the probe twice, two for validation, a group; in the next commands the probe first
    for (how, message), after in zip(SAID.items(), (6, 2, 2, 1), strict=True):
        service.requests.clear()
        service.behaviour = failing(how, after)
        status, _, err = command(*words)
        assert status == 1 and err.count("\n") == 1 and message in err, err
        assert err.startswith(f"adagrpo: reward {service.url}: ") and "the same command continues" in err
        steps = (copied / ".work/train.adagrpo/steps.jsonl").read_text(encoding="utf-8").count("\n")
        assert steps >= furthest  # nothing lost
        furthest = steps
    assert furthest == 2
    service.requests.clear()
    service.behaviour = ring
    assert command(*words).status == 0
    assert weights.read_bytes() == whole and len(service.requests) < asked


def test_an_endpoint_that_says_the_same_of_all_is_a_service_that_fails(
    copied: Path, world: Any, data: Path, service: Any
) -> None:
    def flat(service: Any, handler: Any, body: Any) -> None:
        service.reply(handler, json.dumps({"scores": [[1] * len(row) for row in body["candidates"]]}).encode())

    service.behaviour = flat
    options = {"kind": "weighted", "weights": [1, 1], "members": [{"kind": "http", "url": service.url}] * 2}
    with pytest.raises(ServiceError, match="reward weighted: gives every item of a case the same score"):
        world.run(copied, data, reward=options).train()


def test_evaluation_alone_looks_at_the_reward_too(copied: Path, world: Any, data: Path, tmp_path: Path) -> None:
    module(tmp_path, "ring_d")
    run: Run = world.run(copied, data, reward={"kind": "callable", "function": "ring_d:flat"})
    run.code = tmp_path
    with pytest.raises(UserError, match="same score"):
        run.evaluate()


# ---------------------------------------------------------------- a reward that changes behind the stages' back

BEHIND = """
from pathlib import Path

import {helper}


def far(histories, candidates):
    sign = {helper}.SIGN * float(Path(__file__).with_name("sign.txt").read_text())
    return [[sign * (item % 170) for item in row] for row in candidates]
"""


def opened(directory: Path) -> Run:
    """As in a process of its own, which has imported nothing of the user's."""
    for name in [name for name in sys.modules if name.startswith("behind_")]:
        del sys.modules[name]
    run = Run.open(directory)
    run.console = Heard()
    return run


def lists_of(run: Run, arm: str) -> list[list[Any]]:
    return run.recommend([[3, 13], [23]], k=5, arm=arm).items


@pytest.mark.slow  # three decisions
@pytest.mark.parametrize("what", ["module", "file"])
def test_what_is_served_is_what_was_measured_whatever_the_reward_reads(
    copied: Path, world: Any, data: Path, tmp_path: Path, what: str
) -> None:
    """The 30 items are 3, 13, .. 293, of which 163 has the highest rest by 170, and 173 the lowest."""
    helper, sign = tmp_path / f"behind_helper_{what}.py", tmp_path / "sign.txt"
    module(tmp_path, f"behind_{what}", BEHIND.format(helper=helper.stem))
    helper.write_text("SIGN = 1.0\n", encoding="utf-8")
    sign.write_text("1", encoding="utf-8")
    first: Run = world.run(copied, data, reward={"kind": "callable", "function": f"behind_{what}:far"})
    first.code = tmp_path
    before = first.decide()
    assert lists_of(opened(copied), "reward")[0][0] == 163
    kept = opened(copied)
    kept.decide()
    assert kept.made == [] and all(note.startswith("refit: ") for note in kept.console.notes if "reward" in note)
    (helper if what == "module" else sign).write_text("SIGN = -1.0\n" if what == "module" else "-1", encoding="utf-8")
    again = f"run `adagrpo decide --run {copied}`"
    message = {
        "module": f"reward is stale: made from another behind_helper_module.py than the file is now; {again}",
        "file": "reward behind_file:far answers otherwise than when it was measured: 200 of 200 scores differ, the"
        " first, of item ",
    }[what]
    for arm in ("reward", "rerank", "fuse"):
        for served in (
            lambda run, arm=arm: run.recommend([[3]], k=5, arm=arm),
            lambda run, arm=arm: _Wanted(run, ListOptions(arm)).load(Operation()),
        ):
            with pytest.raises(UserError) as caught:
                served(opened(copied))
            assert message in str(caught.value) and str(caught.value).endswith(again)
    assert lists_of(opened(copied), "sft")  # does not ask it
    rebuilt = opened(copied)
    after = rebuilt.decide()
    assert {"reward", "reranking", "fuse/sft", "evaluate/reward", "evaluate/rerank"} <= set(rebuilt.made)
    assert not {"prepare", "sft", "ranker"} & set(rebuilt.made)
    notes = [note for note in rebuilt.console.notes if "answers otherwise" in note]
    assert [note.endswith("; reward is made again, with what is made from it") for note in notes] == (
        [] if what == "module" else [True]
    )
    figures = [
        next(row["validation"]["ndcg@10"] for row in content["contenders"] if row["list"] == "reward")
        for content in (before, after)
    ]
    assert figures[0] != figures[1]
    assert lists_of(opened(copied), "reward")[0][0] == 173
    if what == "file":  # the arm was trained by the other one, of which no module says so
        assert next(row for row in status(copied)["stages"] if row["stage"] == "train/adagrpo")["state"] == "stale"


def test_an_endpoint_that_answers_otherwise_is_not_served_and_one_that_is_away_is(
    copied: Path, world: Any, data: Path, service: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    world.run(copied, data, reward={"kind": "http", "url": service.url, "retries": 0}).diagnose()
    asked = ListOptions("sft", reward_weight=1.0)

    def noisy(service: Any, handler: Any, body: Any) -> None:
        scores = [[score * (1 + 5e-7) for score in row] for row in service.scores(body)]
        service.reply(handler, json.dumps({"scores": scores}).encode())

    def shifted(service: Any, handler: Any, body: Any) -> None:
        scores = [[score + (0.5 if len(row) == 4 else 0.0) for score in row] for row in service.scores(body)]
        service.reply(handler, json.dumps({"scores": scores}).encode())

    service.behaviour = noisy  # half a millionth is noise of float32
    assert _Wanted(opened(copied), asked).load(Operation()).recommender.reward is not None
    service.behaviour = shifted
    with pytest.raises(UserError, match="score answers otherwise than when it was measured: 200 of 200 scores differ"):
        _Wanted(opened(copied), asked).load(Operation())
    service.behaviour = lambda service, handler, body: service.reply(handler, b"broken", 500)
    away = opened(copied)
    _Wanted(away, asked).load(Operation())
    assert "lists come without it until it does" in capsys.readouterr().err
    away.stage("reward")  # nothing is made again for it
    assert away.made == []


def test_a_reward_that_answers_at_random_is_named_at_once(copied: Path, world: Any, data: Path, tmp_path: Path) -> None:
    text = "import random\n\n\ndef drawn(histories, candidates):\n"
    module(tmp_path, "behind_random", text + "    return [[random.random() for _ in row] for row in candidates]\n")
    options = {"kind": "weighted", "members": [{"kind": "callable", "function": "behind_random:drawn"}, {}]}
    run: Run = world.run(copied, data, console=Heard(), reward=options)
    run.code = tmp_path
    run.diagnose()
    named = [note for note in run.console.notes if "deterministic" in note]
    assert len(named) == 1
    # a few of 200 draws may be as near as float noise
    assert re.match(
        r"note: reward behind_random:drawn is not deterministic: asked twice, (19[5-9]|200) of 200 scores", named[0]
    )
    assert run.recommend([[3]], k=5, arm="rerank").items  # its change could not be told from its noise


@pytest.mark.slow  # a comparison
def test_a_comparison_finds_the_recipes_module(world: Any, data: Path, tmp_path: Path) -> None:
    module(tmp_path / "code", "ring_e")
    recipe = tmp_path / "recipe.yaml"
    reward = {"kind": "callable", "function": "ring_e:ahead"}
    arms = {"arms": [{"objective": "nll"}]}
    compare = {"metric": "hr@10", "margins": {"hallucination@10": 0.01}, "resamples": 200}
    recipe.write_text(yaml.safe_dump(world.recipe(reward=reward, train=arms, compare=compare)), encoding="utf-8")
    config = load_config(recipe)
    comparison = Comparison(tmp_path / "out", config, data, objectives=["nll", "rerank"], code=tmp_path / "code")
    content = comparison.carry_out()
    assert {row["arm"] for row in content["rows"]} >= {"nll", "rerank"}
    described = yaml.safe_load((tmp_path / "out/seed-0/run.yaml").read_text(encoding="utf-8"))
    assert list(described["reward"]["files"]) == ["ring_e.py", "reward/reward.json"]


# ---------------------------------------------------------------- trees


@pytest.mark.slow  # two runs
def test_the_second_family_is_fitted_where_it_is_asked_for(copied: Path, world: Any, data: Path) -> None:
    pytest.importorskip("lightgbm")
    small = {"lambdarank": {"trees": 5, "leaves": 4, "minimum_leaf": 2, "negatives": 9}}
    members = [{"kind": "lambdarank"}, {"kind": "sequential"}]
    options: dict[str, Any] = {"kind": "weighted", "weights": [0.5, 0.5], "members": members}
    run: Run = world.run(copied, data, reward=options, ranker=small)
    run.path("events.jsonl").unlink()
    with pytest.raises(UserError, match=r"ranker/lambdarank/model\.txt: missing; run `adagrpo ranker --run"):
        run.train()
    run.complete()
    metrics = run.results
    assert {"ranker/lambdarank", "reward", "train/adagrpo"} < set(made(run)) and "ranker" not in made(run)
    summary = json.loads(run.path("ranker/lambdarank/metrics.json").read_text(encoding="utf-8"))
    assert summary["groups"] == "logged" and 1 <= summary["trees"] <= 5 and 0 < summary["ndcg@10_among_sampled"] <= 1
    pinned = set(metrics["reward"]["files"])
    assert {"ranker/lambdarank/model.txt", "ranker/best/model.safetensors", "prepare/train.parquet"} <= pinned
    run = again(run, copied, world, data, reward=options, ranker=small)
    run.complete()
    assert made(run) == []
    # the same model file as a reward of the user's own
    own = {"kind": "lightgbm", "model": str(run.path("ranker/lambdarank/model.txt"))}
    models, actual = Models(RunData(run)), Models(RunData(again(run, copied, world, data, reward=own)))
    batch = models.schedule(run.config.train.fit).batches(0)[0]
    items = torch.arange(30).repeat(len(batch.users), 1)
    one, other = (reward.score(batch.histories, items) for reward in (models.reward(), actual.reward()))
    sequential = models.ranker(copied / "ranker/best").score(batch.histories, items)
    torch.testing.assert_close(2 * one - sequential, other, rtol=1e-4, atol=1e-4)


def test_the_second_family_learns_from_impressions(world: Any, tmp_path: Path) -> None:
    pytest.importorskip("lightgbm")
    run: Run = world.run(
        tmp_path / "run",
        tmp_path,
        data={"logs": [], "marketplace": {"users": 80, "items": 100}},
        reward={"kind": "lambdarank"},
        ranker={"lambdarank": {"trees": 5, "minimum_leaf": 5}},
    )
    run.prepare()
    run.stage("ranker/lambdarank")
    summary = json.loads(run.path("ranker/lambdarank/metrics.json").read_text(encoding="utf-8"))
    assert summary["groups"] == "impressions" and summary["rows"] > 3 * summary["group_count"] > 0


FACTORY = """
class Shifted:
    def __init__(self, member, by):
        self.members, self.by = (member,), by

    def score(self, histories, items):
        return self.members[0].score(histories, items) + self.by


def shifted(models, members, *, by):
    (member,) = members
    return Shifted(member, by * models.data.num_items)
"""


def test_a_factory_makes_a_reward_of_the_run_and_its_members(
    copied: Path, world: Any, data: Path, tmp_path: Path
) -> None:
    path = module(tmp_path / "code", "factory_a", FACTORY)
    extra = tmp_path / "extra.txt"
    extra.write_text("x", encoding="utf-8")
    options = {
        "kind": "factory",
        "function": "factory_a:shifted",
        "members": [{"kind": "sequential"}],
        "options": {"by": 2},
        "files": [str(extra)],
    }
    run: Run = world.run(copied, data, reward=options)
    run.code = tmp_path / "code"
    run.train()
    assert run.path("reward", "reward.json").is_file()
    models = Models(RunData(run))
    assert {path, extra, "ranker:best/model.safetensors"} < set(models.reward_files)
    histories, items = Histories(torch.tensor([[1, 2]]), torch.tensor([2])), torch.arange(30).unsqueeze(0)
    own = models.ranker(copied / "ranker/best").score(histories, items)
    torch.testing.assert_close(models.reward().score(histories, items), own + 60)


def test_a_ranker_of_a_run_with_other_items_is_refused(world: Any, data: Path, copied: Path, tmp_path: Path) -> None:
    """It knows items by number, and as many others fit its shapes."""
    other = tmp_path / "other"
    shutil.copytree(copied / "prepare", other / "prepare"), shutil.copytree(copied / "ranker", other / "ranker")
    reward = {"kind": "sequential", "checkpoint": str(other / "ranker" / "best")}
    assert Models(RunData(world.run(copied, data, reward=reward))).reward_files == [
        other / "ranker" / "best" / "model.safetensors"
    ]
    items = pl.read_parquet(other / "prepare" / "items.parquet")
    items.with_columns(pl.col("item_id").reverse()).write_parquet(other / "prepare" / "items.parquet")
    with pytest.raises(UserError, match=r"reward.checkpoint: .*best is of a run with other items; name one"):
        Models(RunData(world.run(copied, data, reward=reward))).reward_files  # noqa: B018


def test_a_run_says_where_the_module_of_a_factory_lies(copied: Path, world: Any, data: Path, tmp_path: Path) -> None:
    for reward in ({"kind": "callable", "function": "m:f"}, {"kind": "factory", "function": "m:f"}):
        config = world.run(copied, data, reward=reward).config
        assert describe(config, {}, data=data, code=tmp_path)["code_directory"] == str(tmp_path)
    assert "code_directory" not in describe(world.run(copied, data).config, {}, data=data, code=tmp_path)
