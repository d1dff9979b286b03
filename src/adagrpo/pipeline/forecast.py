"""Forecast of the memory and disk of fits, a line before they begin, with a warning where it is much.

Parameters are counted on the meta device, whose tensors have shapes and no memory, so the count is exact. What a fit
holds of them, which activations come on top of, is

    copies of the weights + gradients + AdamW's two moments

Nothing is refused by an estimate.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.resources import free_disk, free_memory, in_words
from adagrpo.semantic_ids import Catalog

REAL = 4  # bytes of a float32
COLLISION_CODES = 16  # of the level that tells apart items of equal codes, before it is known


class ModelSize(NamedTuple):
    """Parameters of a model."""

    total: int
    trained: int
    weights: int  # bytes

    @classmethod
    def of(cls, model: nn.Module) -> ModelSize:
        """Count those of a model, wherever its tensors are; what is tied counts once."""
        parts = list(model.parameters())
        trained = sum(part.numel() for part in parts if part.requires_grad)
        weights = sum(part.numel() * part.element_size() for part in parts)
        return cls(sum(part.numel() for part in parts), trained, weights)


class FitForecast(NamedTuple):
    """The forecast of one stage that fits a model."""

    model: str  # as messages call it
    size: ModelSize
    steps: int
    copies: int  # of the weights: at work, the best ones, their average, those that it began with

    @property
    def held(self) -> int:
        """Bytes of weights, gradients and moments."""
        return self.copies * self.size.weights + 3 * REAL * self.size.trained

    @property
    def kept(self) -> int:
        """Bytes of the best and the final weights on disk."""
        return 2 * self.size.weights

    @property
    def passing(self) -> int:
        """Bytes of the checkpoint to continue from and of the one that takes its place: weights, best ones, moments."""
        return 2 * (2 * self.size.weights + 8 * self.size.trained)

    def sentence(self) -> str:
        """Say it in one line."""
        trained = "" if self.size.trained == self.size.total else f", {self.size.trained:,} of them trained"
        return (
            f"{self.model} of {self.size.total:,} parameters{trained}; {self.steps:,} steps; {in_words(self.held)} of"
            f" weights, gradients and optimiser, and activations on top; {in_words(self.kept)} of disk"
        )


class Forecast:
    """The fits of a run over prepared data."""

    def __init__(self, data: RunData) -> None:
        self.data, self.config = data, data.config

    @cached_property
    def policy(self) -> ModelSize | None:
        """The policy; None where the logs have no order, so that there is none."""
        if self.config.without_order:
            return None
        catalog = _planned_catalog(self.data)
        if self.config.policy.can_leave_codes:
            catalog = catalog.with_outside()
        models = _Unallocated(self.data, catalog)
        with torch.device("meta"):
            return ModelSize.of(models.policy_skeleton())

    @cached_property
    def ranker(self) -> ModelSize:
        """The ranker."""
        models = _Unallocated(self.data, Catalog.from_codes(np.zeros((1, 1), dtype=np.int64)))
        with torch.device("meta"):
            return ModelSize.of(models.ranker())

    def fit(self, stage: str) -> FitForecast | None:
        """Forecast a stage; None for one that fits nothing."""
        config, models = self.config, Models(self.data)
        if stage == "ranker" or stage.startswith("ranker/fold-"):
            settings = config.ranker.fit
            steps = max(1, round(settings.epochs * models.schedule(settings).steps_per_epoch))
            return FitForecast("ranker", self.ranker, steps, 2 + (settings.average > 0))
        arm = next((arm for arm in config.train.arms if f"train/{arm.name}" == stage), None)
        if self.policy is None or (arm is None and stage != "sft"):
            return None
        settings = config.sft if arm is None else config.train.fit
        steps = max(1, round(settings.epochs * models.schedule(settings).steps_per_epoch))
        if arm is None and config.policy.lm is not None and config.policy.lm.trained:
            steps = 0  # the checkpoint is kept as it is
        if arm is not None:
            steps *= arm.resolved_objective(config.objective).num_iterations
        started_from = arm is not None and arm.term is not None
        return FitForecast("policy", self.policy, steps, 2 + (settings.average > 0) + started_from)


def say_fit(data: RunData, stage: str) -> None:
    """Say what a fit takes before anything of it is allocated, and warn where memory or disk are short of it."""
    if not data.run.processes.is_main_process:
        return
    fit, run = Forecast(data).fit(stage), data.run
    assert fit is not None, f"{stage} fits no model"
    run.console.note(f"{stage}: {fit.sentence()}")
    there = free_memory(data.device)
    if there is not None and fit.held > there:
        run.console.note(f"{stage}: warning: only {in_words(there)} of memory is free; a smaller model takes less")
    disk, left = fit.kept + fit.passing, free_disk(run.directory)
    if disk > left:
        run.console.note(
            f"{stage}: warning: checkpoints take {in_words(disk)}, and {run.directory} has {in_words(left)} left"
        )


def _planned_catalog(data: RunData) -> Catalog:
    """The Semantic IDs of a run, or where there are none yet a catalogue of the sizes that its recipe asks for."""
    if all(path.is_file() for path in data.catalog_files):
        return Catalog.read(data.catalog_files[0])
    options, items = data.config.tokenizer, data.num_items
    sizes = (options.codes,) * options.levels
    if options.collisions == "level" or np.prod(np.array(sizes, dtype=float)) < items:
        sizes = (*sizes, max(COLLISION_CODES, -(-items // int(np.prod(sizes)))))
    rest, columns = np.arange(items), []
    for size in reversed(sizes):
        rest, code = np.divmod(rest, size)
        columns.append(code)
    return Catalog.from_codes(np.stack(columns[::-1], axis=1), sizes)


class _Unallocated(Models):
    """Makes models on the meta device."""

    def __init__(self, data: RunData, catalog: Catalog) -> None:
        bare = RunData(data.run)
        bare.__dict__ |= {name: value for name, value in vars(data).items() if name not in ("catalog", "device")}
        bare.device = torch.device("meta")
        bare.__dict__["catalog"] = catalog.to(bare.device)
        super().__init__(bare)
