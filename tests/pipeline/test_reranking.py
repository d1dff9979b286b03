"""The teacher's weight: chosen on validation alone, the least that it cannot tell from the best, 0 for noise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adagrpo.errors import UserError
from adagrpo.lists import Query
from adagrpo.pipeline import ListOptions, Run
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.make import make
from adagrpo.pipeline.serve import recommender
from adagrpo.pipeline.stages.evaluate import read_lists
from adagrpo.pipeline.stages.reranking import re_rankings
from adagrpo.rewards.reranking import least_of_the_best

# items are 3, 13, .. 293 on a ring; what comes soon after the last one is good
RING = """
def ahead(histories, candidates):
    rows = zip(histories, candidates, strict=True)
    return [[-float((item - history[-1]) % 300) / 100 for item in row] for history, row in rows]
"""
OPTIONS = {"rollout": "beam", "num_generations": 8}


def arm(weight: float | str, name: str = "taught") -> dict[str, Any]:
    return {"objective": "distill", "name": name, "options": OPTIONS | {"distill": {"reward_weight": weight}}}


def trained(
    world: Any, run: Path, data: Path, arms: list[dict[str, Any]], reward: dict[str, Any], code: Path | None = None
) -> Run:
    made: Run = world.run(run, data, train={"arms": arms}, reward=reward)
    made.code = code or made.code
    made.train()
    return made


def weights(run: Run, name: str) -> bytes:
    return run.path("train", name, "final", "model.safetensors").read_bytes()


def choice(run: Run) -> dict[str, Any]:
    return dict(json.loads(run.path("reranking", "weight.json").read_text(encoding="utf-8")))


def test_the_stage_reads_no_test_case_and_tries_what_re_ranking_tries(copied: Path, data: Path, world: Any) -> None:
    test = copied / "prepare" / "test.parquet"
    held = test.read_bytes()
    test.unlink()
    run = trained(world, copied, data, [arm("validation")], {"kind": "sequential"})
    actual = choice(run)
    test.write_bytes(held)
    make(run, "evaluate/rerank", re_rankings("rerank")["evaluate/rerank"](run))
    tried = json.loads((copied / "evaluate" / "rerank" / "metrics.json").read_text(encoding="utf-8"))["tried"]
    assert actual["ndcg@10"] == pytest.approx(tried) and actual["cases"] == 60
    assert len(set(tried.values())) > 1


def test_what_is_advised_is_what_is_evaluated_and_served(copied: Path, data: Path, world: Any, tmp_path: Path) -> None:
    (tmp_path / "ring_s.py").write_text(RING, encoding="utf-8")
    run: Run = world.run(copied, data, reward={"kind": "callable", "function": "ring_s:ahead"})
    run.code = tmp_path
    advice = run.diagnose().content["reranking"]
    assert advice["weight"] > 0 and advice["spread"] != 1.0
    assert advice == {
        "weight": choice(run)["rerank"],
        "spread": choice(run)["spread"],
        "warning": choice(run)["warning"],
    }
    make(run, "evaluate/rerank", re_rankings("rerank")["evaluate/rerank"](run))
    measured = json.loads((copied / "evaluate" / "rerank" / "metrics.json").read_text(encoding="utf-8"))
    assert {name: measured[name] for name in advice} == advice
    served, about = recommender(run, ListOptions("sft", "best", advice["weight"]))
    assert (about["reward_weight"], about["reward_spread"]) == (advice["weight"], advice["spread"])
    files = RunData(run)
    cases = files.cases("test")
    evaluated = read_lists(files, cases, copied / "evaluate" / "rerank", served.width)
    plain = read_lists(files, cases, copied / "evaluate" / "sft", served.width)
    lists = served.recommend([Query(cases.histories.row(row).tolist()) for row in range(len(cases))])
    names = files.item_ids.to_list()
    assert [one.items for one in lists] == [[names[item] for item in row if item >= 0] for row in evaluated]
    assert not np.array_equal(evaluated, plain)


def test_lists_are_not_served_in_a_unit_that_was_not_measured(copied: Path) -> None:
    shutil.rmtree(copied / "reranking")
    with pytest.raises(UserError, match=r"reranking.*missing; run `adagrpo diagnose --run"):
        recommender(Run.open(copied), ListOptions("sft", "best", 1.0))


def test_the_end_of_the_grid_is_said_and_kept(
    copied: Path, data: Path, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reward that knows the next item, under a grid that ends too soon."""
    monkeypatch.setattr("adagrpo.pipeline.stages.reranking.WEIGHTS", (0.0, 0.01))
    monkeypatch.setattr("adagrpo.rewards.reranking.WEIGHTS", (0.0, 0.01))
    (tmp_path / "ring_edge.py").write_text(RING, encoding="utf-8")
    run: Run = world.run(copied, data, reward={"kind": "callable", "function": "ring_edge:ahead"})
    run.code = tmp_path
    said: list[str] = []
    monkeypatch.setattr(run.console, "note", said.append, raising=False)
    run.stage("reranking")
    assert choice(run)["rerank"] == 0.01 and "0.01 spreads, is the largest that is tried" in choice(run)["warning"]
    assert any(choice(run)["warning"] in line for line in said)


def test_the_chosen_number_trains_as_if_it_had_been_given(copied: Path, data: Path, world: Any, tmp_path: Path) -> None:
    (tmp_path / "ring_w.py").write_text(RING, encoding="utf-8")
    reward = {"kind": "callable", "function": "ring_w:ahead"}  # one that knows, whatever policy it is held against
    run = trained(world, copied, data, [{"objective": "nll"}, arm("validation")], reward, tmp_path)
    chosen = choice(run)["distill"]
    assert chosen > 0 and weights(run, "taught") != weights(run, "nll")
    trained(world, copied, data, [arm(chosen, "given"), arm(chosen + 1, "other")], reward, tmp_path)
    assert weights(run, "taught") == weights(run, "given") != weights(run, "other")
    run.evaluate()
    (entry,) = (entry for name, entry in run.results["stages"].items() if name == "taught")
    assert entry["weight"] == chosen and entry["options"]["distill"]["reward_weight"] == "validation"
    rows = [json.loads(line) for line in run.path("results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row.get("weight") for row in rows if row["arm"] == "taught"} == {chosen}
    assert not any("weight" in row for row in rows if row["arm"] == "nll")


def test_a_reward_that_is_wrong_leaves_continued_nll(copied: Path, data: Path, world: Any, tmp_path: Path) -> None:
    (tmp_path / "ring_back.py").write_text(RING.replace("-float(", "float("), encoding="utf-8")
    reward = {"kind": "callable", "function": "ring_back:ahead"}
    arms = [{"objective": "nll"}, arm("validation"), arm(2.0, "blind")]
    run = trained(world, copied, data, arms, reward, tmp_path)
    assert choice(run)["distill"] == 0
    assert weights(run, "taught") == weights(run, "nll") != weights(run, "blind")


def test_another_reward_is_chosen_for_anew(copied: Path, data: Path, world: Any) -> None:
    run = trained(world, copied, data, [arm("validation")], {"kind": "noise"})
    before = choice(run)
    trained(world, copied, data, [arm("validation")], {"kind": "sequential"})
    assert choice(run)["ndcg@10"] != before["ndcg@10"]


def test_how_often_noise_is_taken_for_a_reward_and_a_good_one_for_noise() -> None:
    """Under the null each weight's values differ from those of weight 0 by nothing but chance."""
    generator, draws, taken, missed = np.random.default_rng(0), 2000, 0, 0
    for _ in range(draws):
        base, chance = generator.random(500), generator.normal(0.0, 0.2, (3, 500))
        taken += least_of_the_best({0.0: base} | {w: base + chance[i] for i, w in enumerate((0.5, 1.0, 2.0))}) > 0
        missed += least_of_the_best({0.0: base, 1.0: base + 0.05 + chance[0], 2.0: base + chance[1]}) == 0
    assert taken / draws == pytest.approx(1 - 0.975**3, abs=0.02)  # any of three that are noise of their own
    assert missed / draws < 0.01


def test_the_least_of_equals() -> None:
    values = np.random.default_rng(0).random(50)
    assert least_of_the_best({5.0: values, 0.5: values, 1.0: values}) == 0.5
    assert least_of_the_best({0.0: values, 1.0: values + 0.01}) == 1.0  # better for everyone, by however little
