"""What the fits of a run take: optimiser steps, memory and disk, before anything of them is allocated."""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from adagrpo.errors import UserError
from adagrpo.pipeline.directory import RunDirectory
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.room import free_disk, free_memory, in_words
from adagrpo.pipeline.sizes import REAL, FitMemory, ModelSize, Shapes, planned_catalog, policy_size, ranker_size
from adagrpo.semantic_ids import Catalog
from adagrpo.trainer.sharding import is_asked_for

__all__ = ["FitForecast", "Forecast", "check_language_model", "check_room"]


# how a step is cut into micro-batches does not change what is trained
ADVICE = "take a smaller model, a lower batch_size with more accumulation, or a lower evaluation.batch_size"


class FitForecast(NamedTuple):
    """What one stage that fits a model takes."""

    model: str  # as messages call it
    size: ModelSize
    steps: int
    memory: FitMemory

    @property
    def kept(self) -> int:
        """Bytes of the best and the final weights."""
        return 2 * self.size.weights

    @property
    def passing(self) -> int:
        """Bytes of the checkpoint to continue from and of the one that takes its place: weights, best ones, moments."""
        return 2 * (2 * self.size.weights + 8 * self.size.trained)

    def said(self) -> str:
        """In one line."""
        trained = "" if self.size.trained == self.size.total else f", {self.size.trained:,} of them trained"
        parts = ", ".join(f"{name} {in_words(value)}" for name, value in asdict(self.memory).items() if value)
        return (
            f"{self.model} of {self.size.total:,} parameters{trained}; {self.steps:,} steps;"
            f" about {in_words(self.memory.peak)} of memory ({parts}); {in_words(self.kept)} of disk"
        )


class Forecast:
    """The fits of a run over prepared data."""

    def __init__(self, data: RunData) -> None:
        self.data, self.config = data, data.config

    @cached_property
    def policy(self) -> tuple[ModelSize, Shapes] | None:
        """The policy; None where the logs have no order, so that there is none."""
        if self.config.without_order:
            return None
        catalog = planned_catalog(self.data)
        size, lm = policy_size(self.data, catalog)
        return size, Shapes(self.config, self.data.num_items, catalog.level_sizes, self._longest, lm)

    @cached_property
    def ranker(self) -> ModelSize:
        """The ranker."""
        return ranker_size(self.data)

    @cached_property
    def _longest(self) -> int:
        return int(min(self.config.max_history, max(1, self.data.training.lengths.max(initial=1) - 1)))

    @property
    def _users(self) -> int:
        return int((self.data.training.lengths >= 2).sum())

    def fit(self, stage: str) -> FitForecast | None:
        """What a stage takes; None for one that fits nothing."""
        config, models = self.config, Models(self.data)
        if stage == "ranker" or stage.startswith("ranker/fold-"):
            loss = self.data.ranker_loss
            shapes = Shapes(config, self.data.num_items, (1,), self._longest)
            memory = shapes.ranker_fit(self.ranker, self._users, loss)
            settings = config.ranker.fit
            steps = max(1, round(settings.epochs * models.schedule(settings).steps_per_epoch))
            return FitForecast("ranker", self.ranker, steps, memory)
        arm = next((arm for arm in config.train.arms if f"train/{arm.name}" == stage), None)
        if self.policy is None or (arm is None and stage != "sft"):
            return None
        size, shapes = self.policy
        settings = config.sft if arm is None else config.train.fit
        steps = max(1, round(settings.epochs * models.schedule(settings).steps_per_epoch))
        if arm is None and config.policy.lm is not None and config.policy.lm.trained:
            steps = 0  # the checkpoint is kept as it is
        if arm is not None:
            steps *= arm.resolved_objective(config.objective).num_iterations
        shared = _sharded_by(self.data.run)
        return FitForecast(
            "policy", size, steps, shapes.policy_fit(size, settings, self._users, arm, sharded_by=shared)
        )


def check_room(data: RunData, stage: str) -> FitForecast:
    """What a fit takes, if there is room for it.

    Args:
        data: of the run.
        stage: that fits a model.

    Raises:
        UserError: in one line that says what is needed and what there is.
    """
    forecast = Forecast(data).fit(stage)
    assert forecast is not None, f"{stage} fits no model"
    _refuse_beyond(data.run, f"{stage}: {forecast.said()}", forecast.memory.peak, forecast.kept + forecast.passing)
    return forecast


def check_language_model(run: RunDirectory) -> None:
    """Refuse a language model whose weights and optimiser alone are more than there is, before any data are read.

    Raises:
        UserError: see `check_room`; or no model can be made of the recipe's section.
    """
    if run.config.policy.kind != "causal_lm" or run.config.without_order:
        return
    options = run.config.tokenizer
    codes = np.zeros((1, options.levels), dtype=np.int64)
    size, _ = policy_size(RunData(run), Catalog.from_codes(codes, (options.codes,) * options.levels))
    shared = _sharded_by(run)
    least = max(size.weights, (2 * size.weights + 3 * REAL * size.trained) // shared)
    said = (
        f"policy.lm: {size.total:,} parameters, {size.trained:,} of them trained, take {in_words(least)} of memory"
        f"{' in each process' * (shared > 1)} with gradients and optimiser alone"
    )
    _refuse_beyond(run, said, least, FitForecast("policy", size, 0, FitMemory(0, 0, 0, 0, 0)).passing)


def _sharded_by(run: RunDirectory) -> int:
    """The processes that a language model is divided among."""
    return run.processes.count if is_asked_for() else 1


def _refuse_beyond(run: RunDirectory, said: str, memory: int, disk: int) -> None:
    there = free_memory(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if there is not None and memory > there:
        raise UserError(f"{said}; there are {in_words(there)} of memory; {ADVICE}")
    left = free_disk(run.directory)
    if disk > left:
        raise UserError(f"{said}; checkpoints take {in_words(disk)}, and {run.directory} has {in_words(left)} left")
