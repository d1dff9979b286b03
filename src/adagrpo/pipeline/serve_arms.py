"""The arms of an experiment, made of the checkpoints that its plan names; what they have in common is held once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from adagrpo.errors import UserError
from adagrpo.experiments.live import LiveExperiment
from adagrpo.pipeline.checks import check
from adagrpo.pipeline.choose_checkpoint import choose_checkpoint
from adagrpo.pipeline.directory import RunDirectory
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.versions import open_version
from adagrpo.policies.policy import Policy
from adagrpo.serving.models import Serving

__all__ = ["load_treatments", "open_runs"]


def open_runs(trial: LiveExperiment, served: RunDirectory) -> dict[str, RunDirectory]:
    """The run of each arm; arms of one folder have the same.

    Args:
        trial: whose plan may name other runs.
        served: of the arms that name none.

    Raises:
        UserError: an arm names a folder that is no run; the line names plan and arm.
    """
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
    trial: LiveExperiment, runs: Mapping[str, RunDirectory], control: Serving, models: Models, catalog: str
) -> list[Serving]:
    """Load the models of the treatments, in the order of the plan.

    Args:
        trial: the experiment.
        runs: of the arms.
        control: what the control serves; the others share its catalogue, items, groups and reward.
        models: of the control's run.
        catalog: the version of the catalogue of the run that is served.

    Raises:
        UserError: an arm is not trained or stale, or has another catalogue; the line names plan and arm.
    """
    first, own = runs[trial.plan.control], trial.plan.arms[trial.plan.control]
    held = {id(first): models}
    known = choose_checkpoint(first, own.serves, own.checkpoint).weights
    policies: dict[tuple[int, Path], Policy[Any, Any]] = {(id(first), known): control.recommender.policy}
    made = []
    for name in trial.plan.treatments:
        run, arm = runs[name], trial.plan.arms[name]
        try:
            chosen = choose_checkpoint(run, arm.serves, arm.checkpoint)
            if id(run) not in held:
                version = open_version(run, catalog if arm.run is None else "latest")
                check(run, "serve", [version.stage])
                held[id(run)] = Models(RunData(run, version))
                _check_catalogue(models, held[id(run)])
            check(run, "serve", [chosen.stage])
            key = (id(run), chosen.weights)
            if key not in policies:
                policies[key] = held[id(run)].policy(chosen.weights)
        except UserError as error:
            raise UserError(f"{trial.path}: arms.{name}: {error}") from error
        served = control.recommender.with_policy(policies[key], run.config.max_history)
        about = {**control.about, "arm": chosen.arm, "checkpoint": arm.checkpoint, "step": chosen.step}
        versions = chosen.versions(run, arm.checkpoint, control.versions["catalog"])
        made.append(Serving(served, about | {"why": chosen.why, "versions": versions}, versions, control.reward_lock))
    return made


def _check_catalogue(ours: Models, theirs: Models) -> None:
    """Check that two runs name the same items by the same codes, so that their arms can answer from one catalogue.

    Raises:
        UserError: they do not.
    """
    a, b = ours.data.catalog, theirs.data.catalog
    same = a.codes.shape == b.codes.shape and a.level_sizes == b.level_sizes and torch.equal(a.codes, b.codes)
    if (
        not same
        or not torch.equal(a.listed, b.listed)
        or ours.data.item_ids.to_list() != theirs.data.item_ids.to_list()
    ):
        raise UserError(
            f"{theirs.data.run.called} has another catalogue than {ours.data.run.called}; arms that are served "
            "together have the same items, codes and delisted items"
        )
