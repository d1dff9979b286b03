"""The plan of the fair trial: every family has the same budget, its arms are arms, and the rule chooses as it says."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from adagrpo.config import ObjectiveConfig
from adagrpo.errors import UserError
from adagrpo.report.comparison_page import read_comparison
from adagrpo.report.page import read_rows
from adagrpo.types import Cases, Ragged
from research.fair_trial import __main__ as both
from research.fair_trial import diagnosed as diagnosing
from research.fair_trial import hard_cases
from research.fair_trial import trial as second_half
from research.fair_trial import tune as tuning
from research.fair_trial.admitted import rows_of
from research.fair_trial.configs import (
    alike_config,
    fixed_rate_config,
    frontier_config,
    reward_config,
    teacher_config,
    thresholds_config,
    trial_config,
    unseen_config,
    whole_config,
)
from research.fair_trial.tune import HERE, Candidate, candidates, chosen, fixed, leaders
from research.pages.pooling import pool
from research.pages.readings import admitted_table, diagnosed_table, hard_table

PLAN = yaml.safe_load((HERE / "plan.yaml").read_text(encoding="utf-8"))
FAMILIES = list(PLAN["families"])


def row(candidate: Candidate, rung: int, hit: float) -> dict[str, Any]:
    return {"rung": rung, "candidate": candidate.label, **candidate._asdict(), "final": {"hr@10": hit}}


def tried(family: str) -> list[dict[str, Any]]:
    """Rows of a whole tuning in which the higher pressure is the better, up to 1, and the second kind of rollouts."""
    rows: list[dict[str, Any]] = []
    for rung in range(len(PLAN["rungs"])):
        for one in candidates(PLAN, family, rung, rows):
            worth = min(one.pressure, 1.0) + 0.01 * PLAN["families"][family]["rollouts"].index(one.rollouts)
            rows.append(row(one, rung, worth + 0.001 * (one.positions != PLAN["families"][family]["positions"][0])))
    return rows


def test_every_family_has_the_same_budget():
    counts = {family: Counter(entry["rung"] for entry in tried(family)) for family in FAMILIES}
    assert all(count == {0: 10, 1: 6} for count in counts.values()), counts


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_tries_is_an_arm_with_its_pressure(family):
    about = PLAN["families"][family]
    for entry in tried(family):
        arm = Candidate(family, entry["pressure"], entry["rollouts"], entry["positions"]).arm(PLAN, "tried")
        seen = arm.resolved_objective(ObjectiveConfig())
        gate = "rollout_miss" if family.endswith("-gate") else about.get("gate")
        assert seen.control_of == "rollout_miss"
        assert (arm.objective, arm.gate, arm.pressure) == (about["objective"], gate, entry["pressure"])
        assert (seen.rollout, seen.num_generations) == (
            PLAN["rollouts"][entry["rollouts"]]["rollout"],
            PLAN["rollouts"][entry["rollouts"]]["num_generations"],
        )
        assert seen.rl_positions == PLAN["positions"][entry["positions"]]["rl_positions"]


def test_the_rule_takes_the_best_of_the_last_rung_and_of_equals_the_lower_pressure():
    rows = tried("grpo-beam")
    assert leaders(rows, "grpo-beam", 1)[0] == Candidate("grpo-beam", 1, "beam32", "end")
    low, high = Candidate("distill", 0.1, "beam32", "end"), Candidate("distill", 0.3, "beam32", "end")
    assert leaders([row(high, 1, 0.5), row(low, 1, 0.5)], "distill", 1) == [low, high]
    arms = yaml.safe_load(chosen(PLAN, rows))
    shown = [(arm["name"], arm["pressure"], arm["options"]["rl_positions"]) for arm in arms]
    assert shown == [("fair-grpo-beam", 1.0, "end")]


def test_no_seed_of_the_trial_is_tuned_on():
    assert all(PLAN["tuning_seed"] not in seeds for seeds in PLAN["seeds"].values())


def test_rows_of_another_plan_or_recipe_are_not_those_of_this_one():
    name = next(iter(PLAN["sets"]))
    mine = fixed(PLAN, name)
    assert mine == fixed(PLAN | {"sets": PLAN["sets"] | {"another": {}}, "trial": {}}, name)
    assert mine != fixed(PLAN | {"pressures": [1]}, name)
    assert mine != fixed(PLAN | {"sets": {name: {"settings": ["max_history=7"]}}}, name)
    assert mine != fixed(PLAN | {"settings": [*PLAN["settings"], "max_history=7"]}, name)


def whole_tuning(name: str) -> list[dict[str, Any]]:
    of = fixed(PLAN, name)
    return [{"plan": of} | entry for family in FAMILIES for entry in tried(family)]


def test_the_trial_has_what_was_chosen_and_holds_each_gate_against_the_random_one():
    rows = whole_tuning("ml-1m")
    config = trial_config(PLAN, "ml-1m", rows)
    assert [arm.name for arm in config.train.arms] == ["nll", *(f"fair-{family}" for family in FAMILIES)]
    assert {arm.pressure for arm in config.train.arms[1:]} == {1.0}
    assert ("fair-grpo-beam-gate", "fair-grpo-beam-random") in config.compare.pairs and len(config.compare.pairs) == 12
    assert config.ranker.fit.epochs == 1  # no arm reads it
    with pytest.raises(UserError, match=r"ml-1m: distill-random has 5 of 6 rows in the last rung"):
        trial_config(PLAN, "ml-1m", rows[:-1])
    with pytest.raises(UserError, match="rows are of another plan"):
        trial_config(PLAN, "ml-1m", [rows[0] | {"plan": "other"}, *rows[1:]])


def test_a_set_that_differs_in_one_thing_has_the_arms_that_were_chosen_for_the_other():
    rows = whole_tuning("amazon-beauty")
    usual, ties = (trial_config(PLAN, name, rows) for name in ("amazon-beauty", "amazon-beauty-ties"))
    assert usual.data.shuffle_ties is None and ties.data.shuffle_ties is not None
    assert ties.name == "amazon-beauty-ties" and ties.train.fit == usual.train.fit and ties.policy == usual.policy
    families = PLAN["sets"]["amazon-beauty-ties"]["families"]
    chosen_before = {arm.name: arm for arm in usual.train.arms}
    assert [arm.name for arm in ties.train.arms] == ["nll", *(f"fair-{family}" for family in families)]
    assert all(arm == chosen_before[arm.name] for arm in ties.train.arms) and len(ties.compare.pairs) == 3
    with pytest.raises(UserError, match=r"kuairand-clicks: rows are of another plan or recipe; move tuning-kuair"):
        trial_config(PLAN, "kuairand-clicks-last", rows)
    last = trial_config(PLAN, "kuairand-clicks-last", whole_tuning("kuairand-clicks"))
    assert last.data.split.kind == "leave_one_out" and last.data.split.test_from is None


GATED = {
    "alike": lambda: alike_config(PLAN, "ml-1m", 2),
    "unseen": lambda: unseen_config(PLAN, "lastfm"),
    "thresholds": lambda: thresholds_config(PLAN, "lastfm"),
    "fixed rate": lambda: fixed_rate_config(PLAN, "lastfm"),
    **{kind: lambda kind=kind: reward_config(PLAN, "yelp", kind) for kind in PLAN["trial"]["rewards"]["kinds"]},
}


@pytest.mark.parametrize("study", GATED)
def test_arms_that_are_held_against_each_other_differ_in_the_gate_alone(study: str):
    config = GATED[study]()
    arms = {arm.name: arm for arm in config.train.arms}
    assert config.compare.pairs
    for first, second in config.compare.pairs:
        one, other = (arms[name].resolved_objective(config.objective) for name in (first, second))
        rates = [seen.bernoulli.admission_rate for seen, name in ((one, first), (other, second)) if "bernoulli" in name]
        assert rates == ([PLAN["trial"]["fixed_rate"]["rate"]] if study == "fixed rate" else [])
        assert one == other.model_copy(update={"bernoulli": one.bernoulli})
        assert arms[first].pressure == arms[second].pressure and arms[first].admits != arms[second].admits


def test_the_gate_is_held_against_the_mixture_at_every_pressure():
    rows = whole_tuning("amazon18-scientific")
    config = frontier_config(PLAN, "amazon18-scientific", rows)
    _, gate, *mixtures = config.train.arms
    assert gate.name == "fair-grpo-samples-gate" and [arm.pressure for arm in mixtures] == PLAN["pressures"]
    assert {arm.admits for arm in mixtures} == {"all"} and len({str(arm.options) for arm in mixtures}) == 1
    assert [tuple(pair) for pair in config.compare.pairs] == [(gate.name, arm.name) for arm in mixtures]
    with pytest.raises(UserError, match="continues the tuning"):
        frontier_config(PLAN, "amazon18-scientific", rows[:-1])


def test_what_is_tuned_again_at_full_length_chooses_by_those_rows_alone():
    rows = whole_tuning("kuairand-clicks")
    families = PLAN["trial"]["whole"]["families"]
    again = [row(one, 2, one.pressure) for family in families for one in leaders(rows, family, 1)]
    config = whole_config(PLAN, "kuairand-clicks", [*rows, *again])
    assert [arm.name for arm in config.train.arms[1:]] == [f"fair-{family}" for family in families]
    assert {arm.pressure for arm in config.train.arms[1:]} == {2.0}  # and 1 where a third of the steps chose
    assert len(config.compare.pairs) == 6


@pytest.mark.parametrize("teacher", PLAN["trial"]["teachers"])
def test_a_teacher_has_the_chosen_distillation_with_the_weight_of_validation(teacher: str):
    config = teacher_config(PLAN, "ml-1m", whole_tuning("ml-1m"), teacher, [HERE / "a", HERE / "b"])
    nll, arm = config.train.arms
    assert (nll.name, arm.name, arm.pressure) == ("nll", "fair-distill", 1.0)
    assert arm.resolved_objective(ObjectiveConfig()).distill.reward_weight == "validation"
    assert config.reward.kind == PLAN["trial"]["teachers"][teacher]["kind"]
    assert (config.ranker.fit.epochs == 1) == (teacher != "sequential")


@pytest.mark.slow
def test_tuning_trial_and_teachers_from_end_to_end(world: Any, data: Path, tmp_path: Path, monkeypatch: Any):
    """A plan of one family on the tiny world: rows are resumed, what is chosen is trained, teachers are shared."""
    plan = {
        "tuning_seed": 0,
        "seeds": {"others": [1]},
        "pressures": [0.5],
        "rungs": [{"share": 1.0}, {"share": 1.0, "kept": 1}],
        "rollouts": {"few": {"rollout": "beam", "num_generations": 4, "constrained": True}},
        "positions": {"random": {"rl_positions": "random"}},
        "families": {
            "distill": {
                "objective": "distill",
                "rollouts": ["few"],
                "positions": ["random"],
                "options": {"distill": {"reward_weight": 1.0}},
            }
        },
        "settings": [],
        "sets": {"tiny": {"folder": "."}},
        "trial": {
            "settings": ["train.fit.validations=1"],
            "short_ranker": [],
            "validation_users": {"tiny": 20},
            "unseen": {
                "settings": ["train.rl_split=0.5"],
                "pressure": 0.5,
                "positions": "random",
                "rollouts": {"distill": "few"},
                "gates": ["random"],
                "apart": ["train.rl_split_nll=false"],
            },
            "ensemble": [2],
            "teachers": {"count": {"kind": "feature", "name": "popularity"}},
        },
    }
    (tmp_path / "tiny.yaml").write_text(
        yaml.safe_dump(world.recipe(compare={"margins": {}, "resamples": 200})), encoding="utf-8"
    )
    for module in (tuning, second_half, both, diagnosing):
        monkeypatch.setattr(module, "HERE", tmp_path)
    for module in (both, diagnosing):
        monkeypatch.setattr(module, "read_plan", lambda name: plan)
    command = ["fair_trial", "--data", str(data), "--out", str(tmp_path / "out"), "--sets", "tiny"]
    monkeypatch.setattr(sys, "argv", command)
    both.main()
    for _ in range(2):  # the second time it has its row
        diagnosing.main()
    (row,) = map(json.loads, (tmp_path / "diagnosed.jsonl").read_text(encoding="utf-8").splitlines())
    (cells,) = diagnosed_table([row]).rows
    assert cells[:3] == ("tiny", str(row["cases"]), row["decision"]) and cells[3] in ("yes", "no")
    assert float(cells[4].split()[0].replace("\N{MINUS SIGN}", "-")) == round(row["evidence"]["adds"]["mean"], 4)
    more = plan | {"seeds": {"others": [1, 2, 3]}}
    rows = (tmp_path / "tuning-tiny.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line)["rung"] for line in rows.splitlines()] == [0, 1]
    tuning.tune(plan, "tiny", tuning.start(plan, "tiny", data, tmp_path / "out"))
    assert (tmp_path / "tuning-tiny.jsonl").read_text(encoding="utf-8") == rows
    for seed in (2, 3):
        second_half.carry_out(more, "tiny", data, tmp_path / "out", part=[seed])
    parts = [read_comparison(tmp_path / f"trial-tiny-seeds-{seed}.comparison.json") for seed in (2, 3)]
    assert pool(parts)["seeds"] == [2, 3] and {row["arm"] for row in pool(parts)["rows"]} >= {"fair-distill", "rerank"}
    with pytest.raises(UserError, match="--seeds 4: the plan has 1, 2, 3 for tiny"):
        second_half.carry_out(more, "tiny", data, tmp_path / "out", part=[4])
    before = (tmp_path / "trial-tiny.comparison.json").read_bytes()
    both.main()  # nothing is left to do
    assert (tmp_path / "trial-tiny.comparison.json").read_bytes() == before
    gates = {"gate": "rollout_miss", "random": "random"}
    gated = {f"distill-{end}": plan["families"]["distill"] | {"gate": gate} for end, gate in gates.items()}
    second_half.carry_out_unseen(plan | {"families": plan["families"] | gated}, "tiny", data, tmp_path / "out")
    found = read_comparison(tmp_path / "unseen-tiny.comparison.json")["pairs"]
    assert {row["other"] for row in found} == {"fair-distill-random", "fair-distill"}
    assert {row["arm"].startswith("fair-distill-gate") for row in found} == {True}
    monkeypatch.setattr(hard_cases, "HERE", tmp_path)
    hard_cases.main(["--out", str(tmp_path / "out"), "--comparisons", "trial-tiny", "unseen-tiny"])
    for name in ("trial-tiny", "unseen-tiny"):
        check_strata(tmp_path, name)
    with pytest.raises(UserError, match=r"absent/comparison\.json: no such file; --out is that of the trial"):
        hard_cases.main(["--out", str(tmp_path / "out"), "--comparisons", "absent"])
    stale, kept = (
        tmp_path / "out/unseen-tiny/comparison.json",
        read_comparison(tmp_path / "unseen-tiny.comparison.json"),
    )
    kept["rows"][-1]["test"]["hr@10"]["by_seed"][0] += 0.01
    stale.write_text(json.dumps(kept), encoding="utf-8")
    with pytest.raises(UserError, match=r"unseen-tiny/comparison\.json: rerank has another hr@10 in its runs by now"):
        hard_cases.main(["--out", str(tmp_path / "out"), "--comparisons", "unseen-tiny"])
    with pytest.raises(UserError, match="rows of another plan or recipe"):  # before anything is made
        tuning.start(plan | {"pressures": [1]}, "tiny", data, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    copied = second_half._with_starts(more, "tiny", tmp_path / "out", tmp_path / "out" / "copied")  # of parts too
    assert all((copied / f"seed-{seed}/sft/final/model.safetensors").is_file() for seed in (1, 2, 3))
    second_half.teach(plan, "tiny", data, tmp_path / "out")
    contents = [read_comparison(tmp_path / f"{name}.comparison.json") for name in ("trial-tiny", "teacher-tiny-count")]
    assert {row["arm"] for row in contents[0]["rows"]} == {"sft", "nll", "fair-distill", "rerank"}
    kept = [json.loads(line) for line in (tmp_path / "trial-tiny.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["arm"] for row in kept} >= {"nll", "fair-distill", "rerank"}
    assert {row["arm"] for row in contents[1]["rows"]} == {
        "sft",
        "nll",
        "fair-distill",
        "rerank",
        "fair-distill+rerank",
    }
    first = [next(row for row in content["rows"] if row["arm"] == "nll") for content in contents]
    assert [first[0]["test"][name] == first[1]["test"][name] for name in ("hr@10", "coverage@10")] == [True, True]
    weights = [tmp_path / f"out/trial-tiny{t}/seed-1/sft/final/model.safetensors" for t in ("", "-count")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def check_strata(folder: Path, name: str) -> None:
    """The strata part the test users, and what arms differ by in them adds up to their difference over all."""
    rows = list(read_rows(folder / f"hard-{name}.jsonl"))
    whole = read_comparison(folder / f"{name}.comparison.json")
    sizes = {row["stratum"]: row["users"][0] for row in rows}
    assert sum(sizes.values()) == whole["users"] and len(sizes) > 1
    differences = {
        (row["arm"], row["other"]): row["against"] for row in whole.get("pairs", []) if row["checkpoint"] == "final"
    }
    last = [row for row in whole["rows"] if row["checkpoint"] == "final" or row["arm"] == "rerank"]
    differences |= {(row["arm"], "nll"): row["against"] for row in last if row["arm"] != "nll"}
    for pair, against in differences.items():
        mine = [row for row in rows if (row["arm"], row["other"]) == pair]
        mean = sum(sizes[row["stratum"]] * row["against"]["hr@10"]["difference"] for row in mine) / whole["users"]
        assert mean == pytest.approx(against["hr@10"]["difference"]), pair
    table = hard_table(rows, "nll")
    assert {line[0] for line in table.rows} == {arm for arm, other in differences if other == "nll"}
    assert len(hard_table(rows).rows) == len(whole["plan"]["pairs"]) and len(table.header) == 1 + len(sizes)


def test_a_hard_case_is_told_where_the_reward_puts_the_logged_item_above_the_list() -> None:
    class Numbers:
        def score(self, histories: Any, items: Any) -> Any:
            return items.float()  # the higher number is the better item

    cases = Cases(np.arange(3), Ragged(np.array([1, 2, 3], np.int32), np.arange(4)), np.array([9, 5, 0]))
    lists = np.array([[4, 9, 5, -1], [9, 8, 5, 1], [7, 6, 5, 4]])
    assert hard_cases.told(Numbers(), cases, lists, 5, torch.device("cpu")).tolist() == pytest.approx([1.0, 1 / 3, 0.0])
    places = hard_cases.strata_of(np.array([1, 10, 11, 0]), np.array([0.0, 1.0, 0.95, 0.94]))
    assert [hard_cases.STRATA[place] for place in places] == ["found", "found", "hard, told", "hard, not told"]


def test_what_gates_let_through_is_a_share_of_groups(tmp_path: Path) -> None:
    steps: list[dict[str, Any]] = [
        {"admission": 0.3, "shuffled_admission": 0.1, "rejected_easy": 0.0, "contains_target": 0.5},
        {"admission": 0.1, "shuffled_admission": 0.0, "rejected_easy": 0.2, "contains_target": 0.7},
        {"admission": 0.0, "shuffled_admission": 0.2, "rejected_easy": 0.1, "contains_target": 0.3},
    ]
    steps[0]["admitted_contains_target"], steps[1]["admitted_contains_target"] = 1.0, 0.0
    folder = tmp_path / "trial-tiny/seed-4/train/fair-distill-gate"
    folder.mkdir(parents=True)
    written = [{"nll": 4.0, "skipped": 1.0, "not_finite_grpo": 1.0}, *steps]
    (folder / "steps.jsonl").write_text("".join(json.dumps(step) + "\n" for step in written))
    (row,) = rows_of(tmp_path / "trial-tiny")
    assert (row["comparison"], row["seed"], row["arm"], row["steps"]) == ("trial-tiny", 4, "fair-distill-gate", 3)
    assert row["admission"] == pytest.approx(0.4 / 3) and row["admitted_contains_target"] == pytest.approx(0.75)
    assert admitted_table([row]).rows[0][1:3] == ("13.33 %", "10.00 %")
    with pytest.raises(UserError, match="no steps of an arm with a gate"):
        rows_of(tmp_path / "other")
