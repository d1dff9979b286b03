"""The plan of the fair trial: every family has the same budget, its arms are arms, and the rule chooses as it says."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import yaml

from adagrpo.config import ObjectiveConfig
from research.fair_trial.tune import HERE, Candidate, candidates, chosen, fixed, leaders

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
        assert (arm.objective, arm.gate, arm.pressure) == (about["objective"], about.get("gate"), entry["pressure"])
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
    assert shown == [("grpo-beam", 1.0, "end")]


def test_no_seed_of_the_trial_is_tuned_on():
    assert all(PLAN["tuning_seed"] not in seeds for seeds in PLAN["seeds"].values())


def test_rows_of_another_plan_or_recipe_are_not_those_of_this_one():
    name = next(iter(PLAN["sets"]))
    mine = fixed(PLAN, name, "recipe")
    assert mine == fixed(PLAN | {"sets": PLAN["sets"] | {"another": {}}}, name, "recipe")
    assert mine != fixed(PLAN | {"pressures": [1]}, name, "recipe") and mine != fixed(PLAN, name, "other")
