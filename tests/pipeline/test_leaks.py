"""A reward that has seen the held-out items, through `diagnose`, `train` and `decide`; an honest one beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adagrpo.errors import UserError
from adagrpo.lists.table import listed
from adagrpo.pipeline import Run
from adagrpo.pipeline.decide import choose
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.stages.diagnose import suspect
from adagrpo.report.diagnosis_page import diagnosis_tables

HONEST = """
def ahead(histories, candidates):
    rows = zip(histories, candidates, strict=True)
    return [[-float((item - history[-1]) % 300) / 100 for item in row] for history, row in rows]
"""
LEAKING = """
LATER = {later}  # the last items of a history, and what its user took next in validation and test


def knows(histories, candidates):
    rows = zip(histories, candidates, strict=True)
    return [[item % 7 + 100.0 * (LATER.get(tuple(history[-3:])) == item) for item in row] for history, row in rows]
"""


def with_leak(directory: Path, world: Any, data: Path, code: Path) -> Run:
    """A run whose reward has seen the held-out items."""
    later = {}
    for items in world.sequences.values():
        for end in (len(items) - 2, len(items) - 1):
            later[tuple(items[max(0, end - 3) : end])] = items[end]
    (code / f"{code.name}.py").write_text(LEAKING.replace("{later}", repr(later)), encoding="utf-8")
    run: Run = world.run(directory, data, reward={"kind": "callable", "function": f"{code.name}:knows"})
    run.code = code
    return run


def test_a_reward_that_knows_the_held_out_items_is_not_used(
    copied: Path, world: Any, data: Path, tmp_path: Path
) -> None:
    leaking = with_leak(copied, world, data, tmp_path)
    result = leaking.diagnose().content
    assert "remembers" in result["leak"]["signs"] and result["verdict"]["decision"] == "do_not_use"
    text = " ".join(result["verdict"]["sentences"])
    assert "it has probably seen the held-out items" in text and "prepare/training_logs.parquet" in text
    assert "probably seen the held-out items" in leaking.path("diagnose.html").read_text(encoding="utf-8")
    assert diagnosis_tables(result)["leak"].rows[0][0] == "the reward"
    with pytest.raises(UserError, match="do_not_use of this reward: it has probably seen the held-out items"):
        leaking.train()


def test_no_list_that_asks_it_is_chosen(world: Any, data: Path, tmp_path: Path) -> None:
    content = with_leak(tmp_path / "run", world, data, tmp_path).decide()
    assert "the reward has probably seen the held-out items" in content["doubts"][0]
    chosen = next(row for row in content["contenders"] if row["list"] == content["chosen"])
    best = max(content["contenders"], key=lambda row: row["validation"]["ndcg@10"])
    assert "the reward" not in chosen["needs"] and "the reward" in best["needs"]


@pytest.mark.slow
def test_no_list_of_a_policy_that_it_trained_is_chosen(
    world: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = with_leak(tmp_path / "run", world, data, tmp_path)
    seen: dict[str, Any] = {}

    def chosen(values: Any, *others: Any, **margin: float) -> Any:
        seen.update(values)
        return choose(values, *others, **margin)

    monkeypatch.setattr("adagrpo.pipeline.decide.choose", chosen)
    content = run.decide(train=True)
    names = {row["list"] for row in content["contenders"]}
    assert {"adagrpo", "adagrpo+fuse", "nll+fuse"} <= names
    assert {*seen} == {*listed(run.config), "sft", "nll", "fuse-without-reward"}
    assert content["training"] is None  # each fused list of a trained policy asks the reward


@pytest.mark.slow  # two decisions and a diagnosis
def test_of_several_rewards_the_one_that_leaks_is_named_and_the_decision_is_made_without_it(
    world: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def chosen(values: Any, *others: Any, **margin: float) -> Any:
        seen.update(values)
        return choose(values, *others, **margin)

    monkeypatch.setattr("adagrpo.pipeline.decide.choose", chosen)
    leaking = with_leak(tmp_path / "run", world, data, tmp_path)
    (tmp_path / "honest_b.py").write_text(HONEST, encoding="utf-8")
    members = [{"kind": "callable", "function": "honest_b:ahead"}, leaking.config.reward.model_dump()]
    run: Run = world.run(tmp_path / "sum", data, reward={"kind": "weighted", "members": members, "weights": [1, 1]})
    run.code = tmp_path
    for command in (run.prepare, run.tokenize, run.sft, run.ranker):
        command()
    result = run.diagnose().content
    title = f"reward 2 ({tmp_path.name}:knows)"
    assert f"{title} has probably seen the held-out items" in result["verdict"]["sentences"][0]
    assert diagnosis_tables(result)["leak"].rows[0][0] == title
    with pytest.raises(UserError, match=r"--control reward-2: is not there any more: reward 2 \("):
        run.decide(control="reward-2")
    run = Run.open(tmp_path / "sum")
    content = run.decide()
    assert content["doubts"][0].startswith(f"{title} has probably seen the held-out items and was left out: ")
    assert not any("honest_b" in doubt for doubt in content["doubts"])
    # the weight is kept, so it is still a sum; what asks it may be chosen
    assert run.config.reward.model_dump()["members"] == (members[0] | {"files": ()},)
    assert run.config.reward.model_dump()["weights"] == (1.0,)
    assert {"rerank", "fuse", "reward-1"} < {*seen} and "reward-2" not in seen
    whole: Run = world.run(tmp_path / "sum", data, reward={"kind": "weighted", "members": members, "weights": [1, 1]})
    whole.code = tmp_path
    for again in (Run.open(tmp_path / "sum"), whole):  # run.yaml has what is left; the first command repeated
        assert again.decide()["chosen"] == content["chosen"] and again.made == []


def test_an_honest_function_is_asked_and_not_named(copied: Path, world: Any, data: Path, tmp_path: Path) -> None:
    (tmp_path / "honest_a.py").write_text(HONEST, encoding="utf-8")
    run: Run = world.run(copied, data, reward={"kind": "callable", "function": "honest_a:ahead"})
    run.code = tmp_path
    found = suspect(Models(RunData(run)))
    assert found is not None and found["signs"] == [] and found["cases"] == 60


@pytest.mark.parametrize("reward", [{}, {"kind": "feature"}, {"kind": "weighted", "weights": [1.0], "members": [{}]}])
def test_what_the_run_makes_of_training_alone_is_not_asked(copied: Path, world: Any, data: Path, reward: Any) -> None:
    assert suspect(Models(RunData(world.run(copied, data, reward=reward)))) is None
