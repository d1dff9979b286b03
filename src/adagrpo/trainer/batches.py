"""Training batches in an order that is a function of (seed, step).

A history of n items holds n - 1 samples: items `0 .. t` are the input, item `t + 1` is the target. Where training knows
baskets, each item of a basket is the target of a sample whose input ends with the basket before, and the items of one
basket come in another order in each epoch. An RL split assigns samples by (seed, user, position) to the RL term or NLL;
RL targets still appear in later histories.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adagrpo.config import ObjectiveConfig
from adagrpo.data.sequences import basket_starts, length_bucketed_batches, older_items, pad
from adagrpo.data.splits import keyed_uniforms
from adagrpo.errors import UserError
from adagrpo.types import Histories, Ragged, indices_of


class TrainingBatch(NamedTuple):
    """`B` histories and their `N` samples."""

    users: NDArray[np.int64]  # (B,)
    histories: Histories  # (B, T)
    rows: Tensor  # (N,) int64
    positions: Tensor  # (N,) int64: the sample sees items 0 .. position of its row
    targets: Tensor  # (N,) int64
    nll: Tensor  # (N,) bool, True where NLL is taken
    rl: Tensor  # (N,) bool, True where the RL term may be taken
    first: NDArray[np.int64]  # (B,) index of the first item of each history in its user's sequence

    def to(self, device: torch.device) -> TrainingBatch:
        """Move to a device."""
        rows, positions, targets, nll, rl = (
            part.to(device) for part in (self.rows, self.positions, self.targets, self.nll, self.rl)
        )
        return TrainingBatch(self.users, self.histories.to(device), rows, positions, targets, nll, rl, self.first)


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
        return len(_order(self, 0))

    def batches(self, step: int) -> list[TrainingBatch]:
        """Return the micro-batches of a step, counted from 0."""
        epoch, offset = divmod(step, self.steps_per_epoch)
        parts = -(-self.accumulation // self.processes) * self.processes
        make = self._batch if self.training.baskets is None else partial(self._of_baskets, epoch=epoch)
        return [make(rows) for rows in np.array_split(_order(self, epoch)[offset], parts) if len(rows)]

    @property
    def lengths(self) -> NDArray[np.int64]:  # (U,)
        """Usable training length of each user."""
        lengths = self.training.lengths
        if self.training.baskets is not None:  # of a user with one basket nothing is a target
            lengths = np.where(self._basket_starts[1] > self.training.offsets[:-1], lengths, 0)
        return lengths if self.left_out is None else np.where(self.left_out, 0, lengths)

    @cached_property
    def _basket_starts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        # (total,) index of the first item of each item's basket, and (U,) of each user's last basket
        starts, last = basket_starts(self.training), self.training.offsets[:-1].copy()
        there = self.training.lengths > 0
        last[there] = starts[self.training.offsets[1:][there] - 1]
        return starts, last

    def _batch(self, rows: NDArray[np.int64]) -> TrainingBatch:
        padded = pad(self.training, rows, self.max_history + 1)
        lengths = padded.lengths - 1
        real = torch.arange(padded.items.shape[1] - 1) < lengths.unsqueeze(1)  # (B, T)
        sample_rows, positions = real.nonzero(as_tuple=True)
        histories = Histories(padded.items[:, :-1].contiguous(), lengths, torch.from_numpy(rows))
        targets = padded.items[:, 1:][real]
        whole = self.training.offsets[rows + 1] - self.training.offsets[rows]
        first = whole - padded.lengths.numpy()  # items that padding dropped from the front
        indices = first[sample_rows] + positions.numpy() + 1  # of the targets in their users' sequences
        return self._split(rows, histories, (sample_rows, positions, targets), indices, first)

    def _of_baskets(self, rows: NDArray[np.int64], epoch: int) -> TrainingBatch:
        training, (starts, last) = self.training, self._basket_starts
        begin, end = training.offsets[rows], last[rows]  # a history ends before its user's last basket
        first = np.maximum(begin, end - self.max_history)
        lengths = end - first
        where = indices_of(first, lengths)
        owners = np.repeat(np.arange(len(rows)), lengths)
        drawn = keyed_uniforms(self.seed, np.full_like(where, epoch), where)
        values = training.values[where[np.lexsort((drawn, starts[where], owners))]].astype(np.int64)
        real = torch.arange(int(lengths.max())) < torch.from_numpy(lengths).unsqueeze(1)
        items = torch.zeros(real.shape, dtype=torch.int64)
        items[real] = torch.from_numpy(values)
        after = training.offsets[rows + 1] - first
        targets, of_row = indices_of(first, after), np.repeat(np.arange(len(rows)), after)
        kept = starts[targets] > first[of_row]  # a basket comes before theirs
        targets, of_row = targets[kept], of_row[kept]
        sample_rows, positions = torch.from_numpy(of_row), torch.from_numpy(starts[targets] - 1 - first[of_row])
        wanted = torch.from_numpy(training.values[targets].astype(np.int64))
        histories = Histories(items, torch.from_numpy(lengths), torch.from_numpy(rows))
        return self._split(rows, histories, (sample_rows, positions, wanted), targets - begin[of_row], first - begin)

    def _split(
        self,
        rows: NDArray[np.int64],  # (B,)
        histories: Histories,
        samples: tuple[Tensor, Tensor, Tensor],  # (N,) rows, positions, targets
        indices: NDArray[np.int64],  # (N,) of the targets in their users' sequences
        first: NDArray[np.int64],  # (B,)
    ) -> TrainingBatch:
        everything = torch.ones_like(samples[2], dtype=torch.bool)
        if self.rl_split == 0:
            return TrainingBatch(rows, histories, *samples, everything, everything, first)
        apart = torch.from_numpy(keyed_uniforms(self.seed, rows[samples[0].numpy()], indices) < self.rl_split)
        nll = everything if self.rl_split_nll else ~apart
        return TrainingBatch(rows, histories, *samples, nll, apart, first)


@lru_cache(maxsize=4)
def _order(schedule: BatchSchedule, epoch: int) -> list[NDArray[np.int64]]:
    return length_bucketed_batches(
        schedule.lengths, batch_size=schedule.batch_size * schedule.accumulation, seed=schedule.seed, epoch=epoch
    )


class GroupSamples(NamedTuple):
    """Samples of a micro-batch at which groups are drawn."""

    histories: Histories  # (N, T)
    targets: Tensor  # (N,) -1 at the ends of histories, where no training interaction follows
    indices: Tensor | None  # (N,) int64, indices into the batch's samples; None at the ends of histories


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

    `rl_positions` is `random` (one RL sample per history), `last`, `all`, or `end` (after the whole history);
    `exclude_history` adds older items.
    """
    batches = [batch.to(device) for batch in schedule.batches(step)]
    generator = keyed_generator(schedule.seed, step, 1)
    return GroupStep(batches, [_samples(schedule, batch, objective, generator) for batch in batches], generator)


def _samples(
    schedule: BatchSchedule, batch: TrainingBatch, objective: ObjectiveConfig, generator: torch.Generator
) -> GroupSamples:
    device, positions = batch.targets.device, objective.rl_positions

    def older(seen: int | NDArray[np.int64]) -> Tensor | None:  # (B, O) what the users had before their last `seen`
        return older_items(schedule.training, batch.users, seen).to(device) if objective.exclude_history else None

    if positions == "end":
        padded = pad(schedule.training, batch.users, schedule.max_history)
        users = torch.from_numpy(batch.users).to(device)
        whole = Histories(padded.items.to(device), padded.lengths.to(device), users, older(schedule.max_history))
        return GroupSamples(whole, torch.full_like(whole.lengths, -1), None)
    indices = batch.rl.nonzero().squeeze(1)
    if positions != "all":
        histories = len(batch.histories.lengths)
        counts = torch.bincount(batch.rows[indices], minlength=histories)
        chosen = counts - 1  # the last
        if positions == "random":
            uniforms = torch.rand(histories, generator=generator, dtype=torch.float64).to(device)
            chosen = (uniforms * counts).long()
        first = counts.cumsum(0) - counts  # samples are listed row by row
        indices = indices[(first + chosen)[counts > 0]]
    seen = truncate(batch.histories, batch.rows[indices], batch.positions[indices])
    offsets = schedule.training.offsets
    before = older(offsets[batch.users + 1] - offsets[batch.users] - batch.first)
    if before is not None:
        seen = seen._replace(older=before[batch.rows[indices]])
    return GroupSamples(seen, batch.targets[indices], indices)


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
