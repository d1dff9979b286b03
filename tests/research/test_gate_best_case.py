"""The study of the gate's best case: its plan names arms of its recipe, and its worlds are pooled as seeds are."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from adagrpo.config import load_config
from adagrpo.statistics import crossed_interval, crossed_parts
from research.gate_best_case import measure
from research.worlds_pooled import over_worlds

PLAN = yaml.safe_load((measure.HERE / "worlds.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("reward", PLAN["rewards"])
def test_every_pair_is_of_two_arms_that_the_recipe_trains_at_one_pressure(reward: str) -> None:
    config = load_config(measure.HERE / "recipe.yaml", [f"reward={PLAN['rewards'][reward]}"])
    arms = {arm.name: arm for arm in config.train.arms}
    named = {f"{kind}-{gate}" for kind in ("pressed", "taught") for pair in PLAN["pairs"] for gate in pair}
    assert named <= arms.keys() and len(arms) == 13
    assert {arm.resolved_objective(config.objective).pressure for name, arm in arms.items() if name != "nll"} == {1.0}


def test_every_world_is_met_by_rewards_of_the_plan_and_no_two_have_a_seed() -> None:
    assert {reward for entry in PLAN["worlds"].values() for reward in entry["rewards"]} == PLAN["rewards"].keys()
    assert len({entry["seed"] for entry in PLAN["worlds"].values()}) == len(PLAN["worlds"])


def test_a_paired_difference_has_the_variance_of_its_mean() -> None:
    first, second = np.array([1.0, 2.0, 6.0]), np.array([0.0, 0.0, 0.0])
    assert measure.paired((first, first), (second, second))["hr@10"] == pytest.approx([3.0, 7.0 / 3])


def test_worlds_are_pooled_as_seeds_that_have_no_user_in_common() -> None:
    generator = np.random.default_rng(0)
    worlds = [generator.normal(0.1 * place, 1.0, 400) for place in range(3)]
    places = [np.arange(400) + 400 * place for place in range(3)]
    interval = crossed_interval(crossed_parts(worlds, places), level=0.95)
    found = over_worlds([[float(w.mean()), float(w.var(ddof=1)) / len(w)] for w in worlds])
    assert found == pytest.approx((interval.mean, interval.low, interval.high))
    assert over_worlds([[0.1, 0.01]]) is None
