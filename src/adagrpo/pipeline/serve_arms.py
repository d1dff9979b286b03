"""Models of an experiment's arms, with shared parts loaded once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from adagrpo.errors import ServiceError, UserError
from adagrpo.experiments.live import LiveExperiment
from adagrpo.lists import Recommender
from adagrpo.lists.names import RERANK, START, ListName, parse_list, reward_number
from adagrpo.pipeline.choose_checkpoint import choose_checkpoint
from adagrpo.pipeline.directory import RunDirectory, remake_command
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.list_makers import ListMaker
from adagrpo.pipeline.named_lists import check_served, list_versions, served_list
from adagrpo.pipeline.rewards import check_reward
from adagrpo.pipeline.versions import open_version
from adagrpo.policies.policy import Policy
from adagrpo.rewards.protocol import Reward
from adagrpo.serving.model_manager import Serving


def open_runs(trial: LiveExperiment, served: RunDirectory) -> dict[str, RunDirectory]:
    """Return the run of each arm, opening each folder once."""
    opened: dict[Path, RunDirectory] = {}
    runs = {}
    for name, arm in trial.plan.arms.items():
        if arm.run is None:
            runs[name] = served
            continue
        folder = trial.path.parent / arm.run
        try:
            runs[name] = opened.setdefault(folder, type(served).open(folder))
        except UserError as error:
            raise UserError(f"{trial.path}: arms.{name}.run: {error}") from error
    return runs


def load_treatments(
    trial: LiveExperiment,
    runs: Mapping[str, RunDirectory],
    control: Serving,
    maker: ListMaker,
    catalog: str,
    guarded: Callable[[Reward], Reward],
) -> list[Serving]:
    """Load the treatments' models in plan order, with the control's catalogue."""
    first, own = runs[trial.plan.control], trial.plan.arms[trial.plan.control]
    held = {id(first): maker}
    rewards: dict[tuple[int, int], Reward] = {}  # by run and by member of a sum
    if control.recommender.reward is not None:
        rewards[id(first), reward_number(parse_list(own.serves).order) or 0] = control.recommender.reward
    known = choose_checkpoint(first, parse_list(own.serves).policy or START, own.checkpoint).weights
    policies: dict[tuple[int, Path], Policy[Any, Any]] = {(id(first), known): control.recommender.policy}
    made = []
    for name in trial.plan.treatments:
        run, arm = runs[name], trial.plan.arms[name]
        try:
            called, chosen = served_list(run, arm.serves, arm.checkpoint, maker.reward_weight or 0.0)
            version = open_version(run, catalog if arm.run is None else "latest")
            check_served(run, chosen, version, called, arm.checkpoint)
            if id(run) not in held:
                held[id(run)] = replace(maker, models=Models(RunData(run, version)), loaded=[])
                _check_catalogue(maker.models, held[id(run)].models)
            own_maker, key = held[id(run)], (id(run), chosen.weights)
            if key not in policies:
                policies[key] = own_maker.models.policy(chosen.weights)
            asked = id(run), reward_number(called.order) or 0
            if own_maker.asks_reward(called) and asked not in rewards:
                look_at_reward(own_maker.models)
                rewards[asked] = guarded(own_maker.reward_of(called))
            order = replace(own_maker, checkpoint=arm.checkpoint).order(called, rewards.get(asked))
        except UserError as error:
            raise UserError(f"{trial.path}: arms.{name}: {error}") from error
        served = control.recommender.with_policy(policies[key], run.config.max_history, order)
        about = {**control.about, "arm": str(called), "checkpoint": arm.checkpoint, "step": chosen.step}
        about |= {"reward_weight": weight_said(called, served)}
        weight = maker.reward_weight or 0.0
        versions = list_versions(run, called, chosen, arm.checkpoint, weight, control.versions["catalog"])
        made.append(Serving(served, about | {"versions": versions}, versions, control.reward_lock))
    return made


def weight_said(name: ListName, served: Recommender) -> float | None:
    """Return the reward weight of a policy's list; None for other orders."""
    return served.reward_weight if name.order in ("policy", RERANK) else None


def look_at_reward(models: Models) -> None:
    """Report a failing reward; refuse one whose answers have changed."""
    run = models.run
    try:
        other = check_reward(models)
    except Exception as error:  # user code may raise anything
        said = error if isinstance(error, UserError | ServiceError) else repr(error)
        run.console.note(f"note: the reward failed: {said}; until it answers, lists come without it")
    else:
        if other:
            raise UserError(f"{run.called}: {other}; run {remake_command(run, 'reward')}")


def _check_catalogue(ours: Models, theirs: Models) -> None:
    a, b = ours.data.catalog, theirs.data.catalog
    same = a.level_sizes == b.level_sizes and torch.equal(a.codes, b.codes) and torch.equal(a.listed, b.listed)
    if not same or ours.data.item_ids.to_list() != theirs.data.item_ids.to_list():
        raise UserError(
            f"{theirs.data.run.called} has another catalogue than {ours.data.run.called}; arms that are served "
            "together have the same items, codes and delisted items"
        )
