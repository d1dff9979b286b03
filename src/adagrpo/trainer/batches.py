"""Training batches in an order that is a function of (seed, step).

A history of n items holds n - 1 samples: items `0 .. t` are the input, item `t + 1` is the target. An RL split assigns
samples by (seed, user, position) to the RL term or NLL; RL targets still appear in later histories.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adagrpo.config import ObjectiveConfig
from adagrpo.data.sequences import length_bucketed_batches, older_items, pad
from adagrpo.data.splits import keyed_uniforms
from adagrpo.errors import UserError
from adagrpo.types import Histories, Ragged


class TrainingBatch(NamedTuple):
    """`B` histories and their `N` samples."""

    users: NDArray[np.int64]  # (B,)
    histories: Histories  # (B, T)
    rows: Tensor  # (N,) int64
    positions: Tensor  # (N,) int64: the sample sees items 0 .. position of its row
    targets: Tensor  # (N,) int64
    nll: Tensor  # (N,) bool, True where NLL is taken
    rl: Tensor  # (N,) bool, True where the RL term may be taken

    def to(self, device: torch.device) -> TrainingBatch:
        """Move to a device."""
        items, lengths, users, _ = self.histories
        histories = Histories(items.to(device), lengths.to(device), None if users is None else users.to(device))
        samples = (part.to(device) for part in (self.rows, self.positions, self.targets, self.nll, self.rl))
        return TrainingBatch(self.users, histories, *samples)


@dataclass(frozen=True, eq=False)  # one schedule is one key of the cache below
class BatchSchedule:
    """Histories of each optimiser step: `accumulation` micro-batches of `batch_size`.

    Only their product determines a step's histories. `processes` rounds the number of micro-batches up to a multiple.
    Without `rl_split` all samples serve NLL and RL; `rl_split_nll` keeps NLL on all.
    """

    training: Ragged
    max_history: int
    batch_size: int
    accumulation: int
    seed: int
    rl_split: float = 0.0
    rl_split_nll: bool = False
    processes: int = 1
    left_out: NDArray[np.bool_] | None = None  # (U,) users of whom nothing is read

    def __post_init__(self) -> None:
        if not bool((self.lengths >= 2).any()):
            raise UserError("no user has two training interactions, so there is nothing to learn from")

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps per epoch."""
        return len(self._order(0))

    def batches(self, step: int) -> list[TrainingBatch]:
        """Return the micro-batches of a step, counted from 0."""
        epoch, offset = divmod(step, self.steps_per_epoch)
        parts = -(-self.accumulation // self.processes) * self.processes
        return [self._batch(rows) for rows in np.array_split(self._order(epoch)[offset], parts) if len(rows)]

    @property
    def lengths(self) -> NDArray[np.int64]:  # (U,)
        """Usable training length of each user."""
        lengths = self.training.lengths
        return lengths if self.left_out is None else np.where(self.left_out, 0, lengths)

    def _order(self, epoch: int) -> list[NDArray[np.int64]]:
        return _cached_order(self, epoch)

    def _batch(self, rows: NDArray[np.int64]) -> TrainingBatch:
        padded = pad(self.training, rows, self.max_history + 1)
        lengths = padded.lengths - 1
        real = torch.arange(padded.items.shape[1] - 1) < lengths.unsqueeze(1)  # (B, T)
        sample_rows, positions = real.nonzero(as_tuple=True)
        histories = Histories(padded.items[:, :-1].contiguous(), lengths, torch.from_numpy(rows))
        targets = padded.items[:, 1:][real]
        everything = torch.ones_like(targets, dtype=torch.bool)
        if self.rl_split == 0:
            return TrainingBatch(rows, histories, sample_rows, positions, targets, everything, everything)
        whole = self.training.offsets[rows + 1] - self.training.offsets[rows]
        cut = whole - padded.lengths.numpy()  # items that padding dropped from the front
        places = cut[sample_rows] + positions.numpy() + 1  # of the targets in their users' sequences
        apart = torch.from_numpy(keyed_uniforms(self.seed, rows[sample_rows], places) < self.rl_split)
        nll = everything if self.rl_split_nll else ~apart
        return TrainingBatch(rows, histories, sample_rows, positions, targets, nll, apart)


@lru_cache(maxsize=4)
def _cached_order(schedule: BatchSchedule, epoch: int) -> list[NDArray[np.int64]]:
    return length_bucketed_batches(
        schedule.lengths,
        batch_size=schedule.batch_size * schedule.accumulation,
        seed=schedule.seed,
        epoch=epoch,
    )


class GroupSamples(NamedTuple):
    """Samples of a micro-batch at which groups are drawn."""

    histories: Histories  # (N, T)
    targets: Tensor  # (N,) -1 at the ends of histories, where no training interaction follows
    places: Tensor | None  # (N,) int64, indices into the batch's samples; None at the ends of histories


class GroupStep(NamedTuple):
    """An optimiser step with groups."""

    batches: list[TrainingBatch]
    samples: list[GroupSamples]  # one a micro-batch
    generator: torch.Generator  # keyed by (seed, step), once the samples are chosen

    def joined(self) -> tuple[Histories, Tensor] | None:
        """Concatenate histories and targets; None if the RL split leaves none."""
        targets = torch.cat([part.targets for part in self.samples])
        return (Histories.stack([part.histories for part in self.samples]), targets) if len(targets) else None


def group_step(schedule: BatchSchedule, step: int, objective: ObjectiveConfig, device: torch.device) -> GroupStep:
    """Choose the samples of a step at which groups are drawn.

    Args:
        objective: `rl_positions` is `random` (one RL sample per history), `last`, `all`, or `end` (after the whole
            history); `exclude_history` adds older items.
    """
    batches = [batch.to(device) for batch in schedule.batches(step)]
    generator = keyed_generator(schedule.seed, step, 1)
    return GroupStep(batches, [_samples(schedule, batch, objective, generator) for batch in batches], generator)


def _samples(
    schedule: BatchSchedule, batch: TrainingBatch, objective: ObjectiveConfig, generator: torch.Generator
) -> GroupSamples:
    device, positions = batch.targets.device, objective.rl_positions

    def older(seen: int) -> Tensor | None:  # (B, O) what the users had before their last `seen` items
        return older_items(schedule.training, batch.users, seen).to(device) if objective.exclude_history else None

    if positions == "end":
        padded = pad(schedule.training, batch.users, schedule.max_history)
        users = torch.from_numpy(batch.users).to(device)
        whole = Histories(padded.items.to(device), padded.lengths.to(device), users, older(schedule.max_history))
        return GroupSamples(whole, torch.full_like(whole.lengths, -1), None)
    places = batch.rl.nonzero().squeeze(1)
    if positions != "all":
        histories = len(batch.histories.lengths)
        counts = torch.bincount(batch.rows[places], minlength=histories)
        match positions:
            case "last":
                chosen = counts - 1
            case "random":
                uniforms = torch.rand(histories, generator=generator, dtype=torch.float64).to(device)
                chosen = (uniforms * counts).long()
            case _:
                assert_never(positions)
        first = counts.cumsum(0) - counts  # samples are listed row by row
        places = places[(first + chosen)[counts > 0]]
    seen = truncate(batch.histories, batch.rows[places], batch.positions[places])
    before = older(schedule.max_history + 1)  # of a batch's rows the last item is a target alone
    if before is not None:
        seen = seen._replace(older=before[batch.rows[places]])
    return GroupSamples(seen, batch.targets[places], places)


def truncate(histories: Histories, rows: Tensor, positions: Tensor) -> Histories:
    """Return one history per sample, (N, T'): items `0 .. position` of its row."""
    length = int(positions.max()) + 1 if len(positions) else 1
    items = histories.items[rows, :length]
    beyond = torch.arange(length, device=items.device) > positions.unsqueeze(1)
    users = None if histories.users is None else histories.users[rows]
    return Histories(items.masked_fill(beyond, 0), positions + 1, users)


def step_key(seed: int, *parts: int) -> int:
    """Derive a 63-bit seed; streams of close keys are unrelated."""
    return int(np.random.SeedSequence([seed, *parts]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def keyed_generator(seed: int, *parts: int) -> torch.Generator:
    """Return a generator determined by its key."""
    return torch.Generator().manual_seed(step_key(seed, *parts))
