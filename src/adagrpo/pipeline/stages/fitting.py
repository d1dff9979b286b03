"""Shared parts of the stages that fit a model."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from adagrpo.config import FitConfig, read_settings
from adagrpo.data.prepared import load_user_ids
from adagrpo.objective import GroupSummary
from adagrpo.pipeline.directory import BEGUN, MEASURED, RunDirectory, hashes_of, log_event, path_of
from adagrpo.pipeline.factories import Models, load_begun
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.json_files import read_json, write_json
from adagrpo.pipeline.stage import Read
from adagrpo.policies import Policy
from adagrpo.storage.hashes import hash_json
from adagrpo.trainer import Diverged, FitResult, Task, Watched, fit
from adagrpo.trainer.processes import processes

# Of a refit's epochs and learning rate, with which a refresh fits weights further: set by hand, since at the whole rate
# a fit of a few steps undid what the weights knew; no table compares rates.
GOING_ON, AT_RATE = 0.1, 0.3
DECODING = ("policy", "evaluation", "max_history")  # settings that determine the beams of given weights
NOT_FITTED = ("evaluation.eligible", "evaluation.validation_users")  # exceptions that only affect measured lists

# results that the arms of a run share, by hash of their inputs
SHARED: WeakKeyDictionary[RunDirectory, dict[str, Any]] = WeakKeyDictionary()


def progress(run: RunDirectory, label: str) -> Callable[[int, int], None]:
    """Return a beam search progress callback."""
    started = time.monotonic()
    return lambda done, total: run.console.progress(
        label, done, total, {"cases/s": done / max(1e-9, time.monotonic() - started)}
    )


def measured_fit(run: RunDirectory, stage: str) -> list[Read]:
    """Return what a refit reads of a stage: the best step of the run's own fit, its training data; where it begins."""
    if run.measured is None:
        return []
    begun = [] if run.begun is None else [f"{BEGUN}/{stage}:best/model.safetensors"]
    return [f"{MEASURED}/{stage}:best/checkpoint.json", f"{MEASURED}/prepare:train.parquet", *begun]


def fit_model(
    data: RunData,
    stage: str,
    model: nn.Module,
    task: Task[Any],
    settings: FitConfig,
    work: Path,
    *,
    files: Mapping[str, str] | None = None,  # texts to write with the weights, by name
    watch: bool = False,  # end the fit when the policy collapses
    go_on: bool = False,  # with `watch`, report the collapse but continue
) -> FitResult:
    """Fit a model; if it diverges, write `diverged.json` and raise `Diverged` with the user ids of the last batch."""
    run, until = data.run, task.steps
    if run.measured is not None:  # as many epochs as validation found best, of the same learning rates
        best = read_json(path_of(run, measured_fit(run, stage)[0]))["step"]
        before = replace(task.schedule, training=RunData(run.measured).training).steps_per_epoch
        until = min(until, round(best * task.schedule.steps_per_epoch / before))
    if run.begun is not None:
        task.steps = until = max(1, round(GOING_ON * until))
        settings = settings.model_copy(update={"learning_rate": AT_RATE * settings.learning_rate})
        load_begun(data, stage, model)
    record = run.directory / "diverged.json"
    if processes().is_main_process:
        run.console.note(f"{stage}: {sum(part.numel() for part in model.parameters()):,} parameters, {until:,} steps")
        if not record.is_symlink():
            record.unlink(missing_ok=True)
    told: list[int] = []

    def report(step: int, steps: int, values: Mapping[str, float]) -> None:
        run.console.progress(stage.removeprefix("train/"), step, steps, values)
        empty = GroupSummary.of_row(values).empty_groups
        if empty and not told:
            told.append(step)
            count = f"{empty:g} group{'' if empty == 1 else 's'}"
            log_event(run, stage, f"{count} of step {step} named no item and taught nothing; steps.jsonl counts them")

    def say_lost(step: int, why: str) -> None:
        then = "trains on, as train.stop_lost says" if go_on else "stopped; its best checkpoint is kept"
        log_event(run, stage, f"lost its policy at step {step}: {why}; {then}")

    watched = None
    if watch and run.measured is None:
        watched = Watched(min(len(data.cases("validation")), settings.validation_users), say_lost, go_on)
    try:
        seed = run.config.seed
        return fit(model, task, settings, work, seed=seed, files=files, report=report, watched=watched, until=until)
    except Diverged as error:
        if not processes().is_main_process:
            raise
        user_ids = load_user_ids(data.prepared)
        ids = [user_ids[int(row)] for row in error.users]
        content = {"stage": stage, "not_finite": error.what, "step": error.step, "seed": error.seed, "users": ids}
        write_json(record, content)
        raise Diverged(
            f"{error.what} ({record} has all users; the same command repeats the step)", error.step, error.seed, ids
        ) from error


def measured_once(
    data: RunData, policy: Policy[Any, Any], models: Models, fit: FitConfig
) -> Callable[[], dict[str, float]]:
    """Return a validation function cached by weights; all arms start from the same."""
    assert isinstance(policy, nn.Module), "what is fitted has weights"
    run, model, validate = data.run, policy, models.validator(policy, fit, models.reward())
    reads = read_settings(run.config, [*DECODING, *models.reward_reads, "ranker.folds", "seed"], NOT_FITTED)
    inputs = hashes_of(run, [*data.training_files, *data.catalog_files, *models.reward_files])

    def measure() -> dict[str, float]:
        weights = hashlib.sha256()
        for name, tensor in model.state_dict().items():
            weights.update(name.encode())
            weights.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        key = f"validation {hash_json([reads, inputs, fit.validation_users, weights.hexdigest()])}"
        shared = SHARED.setdefault(run, {})
        if key not in shared:
            shared[key] = validate()
        return dict(shared[key])

    return measure
