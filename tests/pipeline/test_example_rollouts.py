"""The rollouts of the report: what they are, and that the decision shown is the gate's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from adagrpo.data.sequences import pad
from adagrpo.evaluation.predictions import sample_cases
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.report.example_groups import decision_text, example_groups


@pytest.fixture(scope="module")
def content(finished: Path) -> dict[str, Any]:
    return dict(json.loads((finished / "report" / "rollouts" / "rollouts.json").read_text(encoding="utf-8")))


def test_a_case_of_each_outcome_that_occurs(content: dict[str, Any]) -> None:
    assert content["cases"] == 60 and sum(content["shares"].values()) == pytest.approx(1.0, rel=1e-6)
    shown = [example["outcome"] for example in content["examples"]]
    assert {name for name, share in content["shares"].items() if share > 0} == set(shown)
    assert shown.count("admitted") == min(2, round(60 * content["shares"]["admitted"]))


def test_the_decision_follows_from_what_is_shown(content: dict[str, Any]) -> None:
    for example in content["examples"]:
        evidence, limits = example["evidence"], content["thresholds"]
        hard = evidence["above_policy"] >= limits["tau"]
        within = limits["tau_reward"] == 1 or evidence["above_reward"] < limits["tau_reward"]
        told = within and bool(evidence["negatives_above"]) and min(evidence["negatives_above"]) >= limits["rho"]
        if example["outcome"] != "degenerate":
            assert example["outcome"] == ("admitted" if hard and told else "undiscriminated" if hard else "easy")
        assert len(example["rollouts"]) == content["num_generations"] == 4
        missed = sum(not rollout["is_target"] for rollout in example["rollouts"])
        assert evidence["miss"] == pytest.approx(missed / 4, rel=1e-6)
        rollouts = [rollout for rollout in example["rollouts"] if not rollout["is_target"]]
        above = sum(rollout["log_prob"] > example["target"]["log_prob"] for rollout in rollouts)
        assert evidence["above_policy"] == pytest.approx(above / 4, abs=1e-6)


def test_advantages_are_those_of_the_rewards_shown(content: dict[str, Any]) -> None:
    for example in content["examples"]:
        valid = [rollout for rollout in example["rollouts"] if rollout["validity"] == "valid"]
        rewards = torch.tensor([rollout["reward"] for rollout in valid], dtype=torch.float64)
        expected = (rewards - rewards.mean()) / (rewards.std(correction=0) + 1e-4)
        assert [rollout["advantage"] for rollout in valid] == pytest.approx(expected.tolist(), abs=1e-4)
        others = [rollout for rollout in example["rollouts"] if rollout["validity"] != "valid"]
        assert all(rollout["advantage"] == -1.0 and rollout["reward"] is None for rollout in others)


def test_titles_are_the_texts_or_the_ids(content: dict[str, Any], finished: Path) -> None:
    items = pl.read_parquet(finished / "prepare" / "items.parquet")
    codes = pl.read_parquet(finished / "tokenize" / "codes.parquet").sort("item")["codes"].to_list()
    names = [text or str(name) for text, name in items.select("text", "item_id").iter_rows()]
    known = {tuple(code): name for code, name in zip(codes, names, strict=True)}
    for example in content["examples"]:
        assert known[tuple(example["target"]["codes"])] == example["target"]["title"]
        assert set(example["history"]) <= set(names)
        assert all(rollout["title"] == known.get(tuple(rollout["codes"])) for rollout in example["rollouts"])


def test_the_logged_item_is_scored_as_the_policy_scores_it(
    content: dict[str, Any], finished: Path, data: Path, world: Any
) -> None:
    models = Models(RunData(world.run(finished, data)))
    policy = models.policy(finished / "sft" / "best").eval()
    cases = sample_cases(models.data.cases("validation"), 128, models.config.seed)
    targets = torch.from_numpy(cases.targets.astype("int64"))
    wanted = models.data.catalog.codes[targets].tolist()
    with torch.no_grad():
        for example in content["examples"]:
            rows = [row for row, codes in enumerate(wanted) if codes == example["target"]["codes"]]
            histories = pad(cases.histories, rows, models.config.max_history)
            scores = policy.score(policy.encode(histories), models.data.catalog.codes[targets[rows]].unsqueeze(1))
            sums = scores.double().sum(dim=(1, 2)).tolist()
            assert any(value == pytest.approx(example["target"]["log_prob"], abs=1e-4) for value in sums)


def test_rollouts_in_the_history_are_told_apart(world: Any, data: Path, copied: Path) -> None:
    run = world.run(copied, data, objective={"exclude_history": True, "num_generations": 12})
    run.stage("report/rollouts")
    content = json.loads(run.path("report", "rollouts", "rollouts.json").read_text(encoding="utf-8"))
    seen = [r for example in content["examples"] for r in example["rollouts"] if r["validity"] == "in_history"]
    assert seen and all(rollout["title"] and rollout["reward"] is None for rollout in seen)
    groups = example_groups(content)
    assert all(group.left_out == 2 and len(group.rollouts.rows) == 11 for group in groups)  # ten, and the logged item
    assert "already in the history, counted as no item" in str(groups)


def test_a_share_just_below_the_threshold_does_not_print_as_it() -> None:
    example = {"outcome": "undiscriminated", "evidence": {"miss": 1.0, "q": 18 / 19}}
    text = decision_text(example, "rollout_miss", {"miss_min": 0.5, "q_min": 0.95})
    assert "above 94.7 % of the other items (95 % or more)" in text


def test_the_paper_s_tests_are_told_in_words() -> None:
    evidence = {"above_policy": 0.75, "above_reward": 0.25, "negatives_above": [0.5, 0.125]}
    limits = {"tau": 0.5, "tau_reward": None, "rho": 0.3, "rho_from": "top"}
    text = decision_text({"outcome": "admitted", "evidence": evidence}, "adagrpo", limits)
    assert "the policy puts 75 % of the rollouts above the logged item (the gate asks for 50 % or more)" in text
    assert "25 % above it (fewer than 50 %), and 12 % above the best of 2 items of others (30 % or more)" in text
    told = decision_text(
        {"outcome": "undiscriminated", "evidence": evidence}, "adagrpo", limits | {"rho_from": "bottom"}
    )
    assert "50 % above the worst of 2 items of others (70 % or fewer)" in told
