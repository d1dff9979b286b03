"""Recipes of the project: all load, and those that vary another vary what they say and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adagrpo.config import ArmConfig, Config, dump_config, load_config
from adagrpo.objective.terms import TERMS

ROOT = Path(__file__).parents[1]


def load(name: str) -> Config:
    return load_config(ROOT / f"{name}.yaml")


def seen(arm: ArmConfig, config: Config) -> dict[str, Any]:
    """All that an arm is, less its name."""
    own = {"objective": arm.objective, "gate": arm.admits, "weight": arm.lambda_}
    options = arm.resolved_objective(config.objective).model_dump(exclude={"lambda_"})
    own |= {key: value for key, value in options.items() if key not in TERMS}
    return own | {f"{name}.{key}": value for name in TERMS for key, value in options[name].items()}


def changed(arm: ArmConfig, reference: ArmConfig, config: Config) -> set[str]:
    """In what an arm differs from another."""
    mine, theirs = seen(arm, config), seen(reference, config)
    return {key for key in mine if mine[key] != theirs[key]}


@pytest.mark.parametrize("path", sorted([*ROOT.glob("recipes/*.yaml"), *ROOT.glob("research/*/recipe.yaml")]), ids=str)
def test_a_recipe_loads_and_says_how_to_run_it(path: Path) -> None:
    load_config(path)
    assert path.relative_to(ROOT).as_posix() in path.read_text(encoding="utf-8").splitlines()[0]


VARIATIONS = {"arms_beauty": "amazon-beauty", "sensitivity": "amazon-beauty", "controls_beauty": "amazon-beauty"}
VARIATIONS |= {"which_samples": "amazon-toys"}


@pytest.mark.parametrize("study", VARIATIONS)
def test_a_variation_changes_arms_reward_and_comparison_alone(study: str) -> None:
    ours, plain = (dump_config(load(name)) for name in (f"research/{study}/recipe", f"recipes/{VARIATIONS[study]}"))
    assert ours["reward"]["kind"] == "lambdarank"
    for content in (ours, plain):
        del content["reward"], content["compare"], content["train"]["arms"], content["objective"]["control_of"]
    assert ours == plain


def test_the_sensitivity_changes_one_option_of_adagrpo_at_a_time() -> None:
    config = load("research/sensitivity/recipe")
    reference, nll, mixture, *arms = config.train.arms
    assert reference.name == config.compare.baseline == "adagrpo-rollout_miss" and (nll.name, mixture.name) == (
        "nll",
        "mixture",
    )
    assert not reference.options.model_fields_set
    actual = [changed(arm, reference, config) for arm in arms]
    assert all(len(keys) == 1 for keys in actual)
    factors = {"miss_min", "q_min", "weight", "negatives", "num_generations", "temperature", "grpo.beta"}
    assert set.union(*actual) == factors | {"constrained", "inject_target"}
    for arm, (key,) in zip(arms, actual, strict=True):
        value = seen(arm, config)[key]
        assert arm.name.endswith(f"{value:g}") or value is True  # the name says the value


def test_each_control_of_distill_ends_differs_in_what_its_name_says() -> None:
    config = load("research/controls_beauty/recipe")
    reference, nll, *arms = config.train.arms
    assert reference.name == config.compare.baseline == "distill-ends" and nll.name == "nll"
    beauty = load("recipes/amazon-beauty")
    original = next(arm for arm in beauty.train.arms if arm.name == "distill-ends")
    assert seen(reference, config) == seen(original, beauty)
    assert {arm.name: changed(arm, reference, config) for arm in arms} == {
        "ends-logged": {"rl_positions"},
        "ends-sampled": {"rollout"},
        "ends-weight-0": {"distill.reward_weight"},
        "ends-shuffled": {"gate"},
        "ends-mixture": {"objective", "distill.reward_weight"},  # which it does not read
        "ends-mixture-shuffled": {"objective", "gate", "distill.reward_weight"},
    }


def test_the_gates_differ_in_gate_and_weight_alone() -> None:
    config = load("research/which_samples/recipe")
    nll, reference, *arms = config.train.arms
    assert nll.name == config.compare.baseline == "nll" and reference.admits == "all"
    assert {arm.name: (arm.admits, arm.lambda_) for arm in arms} == {
        "all-tenth": ("all", 0.5),
        "gate": ("rollout_miss", 5),
        "random": ("random", 5),
        "gate-tenfold": ("rollout_miss", 50),
        "random-tenfold": ("random", 50),
        "inverted-tenfold": ("inverted", 50),
    }
    assert all(changed(arm, reference, config) <= {"gate", "weight"} for arm in arms)
