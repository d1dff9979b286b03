"""What each trial compares, as a recipe.

The arms that the tuning chose; all arms alike, also at unseen positions, other thresholds, other rewards or beside a
gate of a fixed rate; a gate beside mixtures of all pressures; what full length chose; other teachers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adagrpo.config import Config
from research.fair_trial.tune import Candidate, check_tuned, chosen_arms, recipe_of, short_ranker, tuned_on, written
from research.rewards.controls import files_of_start

__all__ = [
    "alike_config",
    "fixed_rate_config",
    "frontier_config",
    "pairs",
    "recommended_config",
    "reward_config",
    "teacher_config",
    "thresholds_config",
    "trial_config",
    "unseen_config",
    "whole_config",
]


def pairs(families: Sequence[str]) -> list[list[str]]:
    """Each gate against the random one and against none.

    Example:
        >>> pairs(["best", "best-gate", "best-random"])
        [['fair-best-gate', 'fair-best-random'], ['fair-best-gate', 'fair-best'], ['fair-best-random', 'fair-best']]
    """
    named = [name for name in families if {f"{name}-gate", f"{name}-random"} <= set(families)]
    ends = (("-gate", "-random"), ("-gate", ""), ("-random", ""))
    return [[f"fair-{name}{first}", f"fair-{name}{second}"] for name in named for first, second in ends]


def trial_config(plan: Mapping[str, Any], name: str, rows: Sequence[Mapping[str, Any]]) -> Config:
    """The recipe with the arms that were chosen, and what they are held against.

    Args:
        plan: the content of plan.yaml.
        name: of the set.
        rows: of the tuning that chose its arms.

    Raises:
        UserError: the tuning is not complete, or its rows are of another plan.
    """
    check_tuned(plan, tuned_on(plan, name), rows)
    families, found_arms = plan["sets"][name].get("families", list(plan["families"])), chosen_arms(plan, rows)
    return _with_arms(plan, name, pairs(families), [found_arms[f"fair-{family}"] for family in families])


def alike_config(plan: Mapping[str, Any], name: str, pressure: float) -> Config:
    """The recipe with every family at one pressure and one place, with the rollouts of its objective.

    Args:
        plan: the content of plan.yaml.
        name: of the set.
        pressure: of all of them.
    """
    about = plan["trial"]["alike"] | {"pressure": pressure}
    arms = [_alike(plan, about, family, f"fair-{family}") for family in plan["families"]]
    return _with_arms(plan, name, pairs(list(plan["families"])), arms)


def unseen_config(plan: Mapping[str, Any], name: str, *, apart: bool = False) -> Config:
    """The recipe with each gate where the starting policy had no target, all arms alike.

    Args:
        plan: the content of plan.yaml.
        name: of the set.
        apart: continued NLL has none there either.
    """
    about, arms, held = plan["trial"]["unseen"], [], []
    for objective in about["rollouts"]:
        ungated, gated = (_alike(plan, about, family, f"fair-{family}") for family in (objective, f"{objective}-gate"))
        others = [gated | {"gate": gate, "name": f"fair-{objective}-{gate}"} for gate in about["gates"]]
        arms += [ungated, gated, *others]
        held += [[gated["name"], other["name"]] for other in (*others, ungated)]
    return _with_arms(plan, name, held, arms, *about["settings"], *(about["apart"] if apart else ()))


def thresholds_config(plan: Mapping[str, Any], name: str) -> Config:
    """The recipe with the earlier gate at other thresholds, each beside the random gate that admits as many.

    Args:
        plan: the content of plan.yaml.
        name: of the set.
    """
    about, arms, held = plan["trial"]["thresholds"], [], []
    for objective, tried in about["tried"].items():
        for options in tried:
            end = "-".join(f"{key}{value:g}" for key, value in options.items())
            families = (f"{objective}-gate", f"{objective}-random")
            pair = [_alike(plan, about, family, f"fair-{family}-{end}") for family in families]
            own = {"miss_min" if key == "tau" else key: value for key, value in options.items()}
            pair = [arm | {"options": arm["options"] | own} for arm in pair]
            arms += pair
            held.append([arm["name"] for arm in pair])
    return _with_arms(plan, name, held, arms)


def fixed_rate_config(plan: Mapping[str, Any], name: str) -> Config:
    """The recipe with the earlier gate, a random one of its size and one of a fixed rate, all arms alike.

    Args:
        plan: the content of plan.yaml.
        name: of the set.
    """
    about, arms, held = plan["trial"]["fixed_rate"], [], []
    for objective in about["rollouts"]:
        ends = ("-gate", "-random", "")
        gated, drawn, ungated = (_alike(plan, about, f"{objective}{end}", f"fair-{objective}{end}") for end in ends)
        rate = {"gate": "bernoulli", "name": f"fair-{objective}-bernoulli"}
        fixed = gated | rate | {"options": gated["options"] | {"admission_rate": about["rate"]}}
        arms += [gated, drawn, fixed, ungated]
        held += [[gated["name"], fixed["name"]], [drawn["name"], fixed["name"]], [fixed["name"], ungated["name"]]]
    return _with_arms(plan, name, held, arms)


def frontier_config(plan: Mapping[str, Any], name: str, rows: Sequence[Mapping[str, Any]]) -> Config:
    """The recipe with the chosen gate, and the mixture at every pressure of the plan, otherwise as it was chosen.

    Args:
        plan: the content of plan.yaml.
        name: of the set.
        rows: of its tuning.
    """
    check_tuned(plan, tuned_on(plan, name), rows)
    about, found_arms = plan["trial"]["frontier"], chosen_arms(plan, rows)
    gated, mixture = (found_arms[f"fair-{about[key]}"] for key in ("gate", "mixture"))
    named = [(pressure, f"{mixture['name']}-p{pressure:g}") for pressure in plan["pressures"]]
    arms = [gated, *(mixture | {"pressure": pressure, "name": own} for pressure, own in named)]
    return _with_arms(plan, name, [[gated["name"], own] for _, own in named], arms)


def reward_config(plan: Mapping[str, Any], name: str, kind: str) -> Config:
    """The recipe with the gates under another reward, all arms alike.

    Args:
        plan: the content of plan.yaml.
        name: of the set.
        kind: one of `trial.rewards.kinds`.
    """
    about = plan["trial"]["rewards"]
    families = [f"{objective}{end}" for objective in about["rollouts"] for end in ("", "-gate", "-random")]
    arms = [_alike(plan, about, family, f"fair-{family}") for family in families]
    return _with_arms(plan, name, pairs(families), arms, reward=about["kinds"][kind])


def recommended_config(plan: Mapping[str, Any], name: str) -> Config:
    """The recipe with the arms that are recommended, as they are shipped.

    Args:
        plan: the content of plan.yaml.
        name: of the set.
    """
    return _with_arms(plan, name, [], plan["trial"]["recommended"])


def whole_config(plan: Mapping[str, Any], name: str, rows: Sequence[Mapping[str, Any]]) -> Config:
    """The recipe with the arms that were best when trained for all of the steps.

    Args:
        plan: the content of plan.yaml.
        name: of the set.
        rows: of `research.fair_trial.tune.tune_whole`.
    """
    arms = chosen_arms(plan, rows, len(plan["rungs"]))
    return _with_arms(plan, name, pairs(plan["trial"]["whole"]["families"]), list(arms.values()))


def teacher_config(
    plan: Mapping[str, Any], name: str, rows: Sequence[Mapping[str, Any]], teacher: str, ensemble: Sequence[Path]
) -> Config:
    """The recipe with another reward, and the one arm that distils it with the weight that validation chooses.

    Args:
        plan: the content of plan.yaml.
        name: of the set.
        rows: of its tuning.
        teacher: one of `trial.teachers`.
        ensemble: the runs of the policies whose mean is the teacher `ensemble`.
    """
    reward = dict(plan["trial"]["teachers"][teacher])
    if teacher == "ensemble":
        files = [str(file) for run in ensemble for file in files_of_start(run)]
        reward |= {"options": {"runs": [str(run) for run in ensemble]}, "files": files}
    arm = chosen_arms(plan, rows)["fair-distill"]
    arm["options"]["distill"] |= {"reward_weight": "validation"}
    return _with_arms(plan, name, [], [arm], reward=reward)


def _alike(plan: Mapping[str, Any], about: Mapping[str, Any], family: str, name: str) -> dict[str, Any]:
    """An arm of a family with the pressure, place and rollouts that all arms of a trial have."""
    rollouts = about["rollouts"][family.removesuffix("-gate").removesuffix("-random")]
    return written(Candidate(family, about["pressure"], rollouts, about["positions"]).arm(plan, name))


def _with_arms(
    plan: Mapping[str, Any],
    name: str,
    held: Sequence[Sequence[str]],
    arms: Sequence[Mapping[str, Any] | str],
    *options: str,
    reward: Mapping[str, Any] | None = None,
) -> Config:
    """The recipe with continued NLL, some arms, those that are held against each other, and maybe another reward."""
    settled = [f"train.arms={json.dumps(['nll', *arms])}", f"compare.pairs={json.dumps(held)}", *options]
    settled += [] if reward is None else [f"reward={json.dumps(reward)}"]
    ranker = [] if reward is not None and reward["kind"] == "sequential" else short_ranker(plan, name)
    measured = plan["trial"]["validation_users"].get(name)
    sample = [] if measured is None else [f"evaluation.validation_users={measured}"]
    return recipe_of(plan, name, *plan["trial"]["settings"], *sample, *ranker, *settled)
