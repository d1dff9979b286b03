"""Fit of the sequential ranker, on impressions with clicks or on logged next items.

Impressions with logged propensity `p` may be weighted by w = 1 / max(p, floor), to estimate the loss over all items:

    ips    (1 / n) Σ w l         unbiased down to the floor, high variance
    snips  Σ w l / Σ w           bounded weights; a bias that vanishes with batch size

Schnabel et al. 2016; Swaminathan & Joachims 2015. Departure: sums are over the impressions of an optimiser step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from adagrpo.data.sequences import pad
from adagrpo.rewards.sequential import SequentialRanker
from adagrpo.trainer.batches import BatchSchedule, TrainingBatch, keyed_generator
from adagrpo.trainer.task import Task
from adagrpo.types import Histories


class Impressions(NamedTuple):
    """Items shown to users after a number of interactions, sorted by user."""

    offsets: NDArray[np.int64]  # (U + 1,)
    history_lengths: NDArray[np.int64]  # (total,)
    items: NDArray[np.int64]  # (total,)
    slots: NDArray[np.int64]  # (total,)
    clicked: NDArray[np.bool_]  # (total,)
    weights: NDArray[np.float32]  # (total,) 1 / propensity, or 1

    @classmethod
    def from_table(cls, table: pl.DataFrame, num_users: int, propensity_floor: float | None = None) -> Impressions:
        """Build from `adagrpo.data.prepared.load_impressions`, without impressions that precede any interaction.

        With a floor they weigh 1 / max(propensity, floor), else 1.
        """
        table = table.filter(pl.col("history_length") > 0).sort("user", "history_length", maintain_order=True)
        counts = np.bincount(table["user"].to_numpy(), minlength=num_users)
        slots = table["slot"].fill_null(0).to_numpy() if "slot" in table.columns else np.zeros(len(table))
        weights = np.ones(len(table), dtype=np.float32)
        if propensity_floor is not None:
            weights = (1 / table["propensity"].to_numpy().clip(propensity_floor)).astype(np.float32)
        return cls(
            np.concatenate([[0], counts.cumsum()]).astype(np.int64),
            table["history_length"].to_numpy().astype(np.int64),
            table["item"].to_numpy().astype(np.int64),
            slots.astype(np.int64),
            table["clicked"].to_numpy().astype(np.bool_),
            weights,
        )


class ShownItems(NamedTuple):
    """The `N` impressions of a micro-batch, and the histories before them."""

    histories: Histories  # (H, T) those of the batch, and whole ones of users who were shown something after them
    rows: Tensor  # (N,) int64 of these histories
    positions: Tensor  # (N,) int64
    items: Tensor  # (N,) int64
    slots: Tensor  # (N,) int64
    clicked: Tensor  # (N,) bool
    weights: Tensor  # (N,) float32


class RankerMicro(NamedTuple):
    """A micro-batch, with totals of its optimiser step."""

    batch: TrainingBatch
    shown: ShownItems | None  # for impressions
    total: float  # samples of the step, or the sum of their weights; at least 1
    clicks: int  # of the step
    negatives: Tensor | None  # (S,) int64 items; None where the step is this micro-batch alone


class RankerFit(Task[RankerMicro]):
    """A `Task`; see `SequentialRanker` for the losses."""

    def __init__(
        self,
        ranker: SequentialRanker,
        schedule: BatchSchedule,
        *,
        loss: Literal["impressions", "cross_entropy", "sampled"],
        steps: int,
        validate: Callable[[], dict[str, float]],
        impressions: Impressions | None = None,
        self_normalised: bool = False,
        negatives: int = 0,
        monitor: str = "ndcg@10",
    ) -> None:
        if (loss == "impressions") != (impressions is not None):
            raise ValueError("impressions go with the loss of that name, and only with it")
        self.ranker, self.schedule, self.steps, self.validate = ranker, schedule, steps, validate
        self.kind: Literal["impressions", "cross_entropy", "sampled"] = loss
        self.impressions, self.self_normalised, self.negatives = impressions, self_normalised, negatives
        self.monitor = monitor

    def begin(self, step: int) -> tuple[Sequence[RankerMicro], dict[str, float]]:
        """Return the micro-batches of a step."""
        device = self.ranker.items.weight.device
        batches = [batch.to(device) for batch in self.schedule.batches(step)]
        shown = [self._shown(batch) if self.impressions is not None else None for batch in batches]
        if self.self_normalised:
            total = float(sum(part.weights.sum() for part in shown if part is not None))  # weights are 1 or more
        else:
            total = sum(
                len(batch.targets if part is None else part.items) for batch, part in zip(batches, shown, strict=True)
            )
        clicks = sum(int(part.clicked.sum()) for part in shown if part is not None)
        negatives = None
        if self.negatives and len(batches) > 1:
            # a step that is whole draws them in `loss`, from the stream of this key: without dropout the same items
            generator = keyed_generator(self.schedule.seed, step, 0)
            negatives = torch.randint(self.ranker.items.num_embeddings, (self.negatives,), generator=generator).to(
                device
            )
        return [
            RankerMicro(batch, part, max(1.0, total), clicks, negatives)
            for batch, part in zip(batches, shown, strict=True)
        ], {}

    def loss(self, micro: RankerMicro) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return the share of the mean `loss` and, for impressions with negatives, of `sampled`."""
        batch = micro.batch
        self.ranker.train()
        if micro.shown is not None:
            histories, rows, positions, items, slots, clicked, weights = micro.shown
            states = self.ranker.states_at(histories, rows, positions)  # of both terms: the encoder runs once
            values = self.ranker.impression_loss(states, items, slots, clicked)
            terms = {"loss": (weights * values).sum() / micro.total}
            if self.negatives and bool(clicked.any()):  # the clicks alone are biased against items that were not shown
                losses = self.ranker.sampled_loss(states[clicked], items[clicked], self._negatives(micro))
                terms["sampled"] = losses.sum() / micro.clicks
            return terms, {}
        states = self.ranker.states_at(batch.histories, batch.rows, batch.positions)
        if self.kind == "cross_entropy":
            values = self.ranker.next_item_loss(states, batch.targets)
        else:
            values = self.ranker.sampled_loss(states, batch.targets, self._negatives(micro))
        return {"loss": values.sum() / micro.total}, {}

    def _negatives(self, micro: RankerMicro) -> Tensor:
        if micro.negatives is not None:
            return micro.negatives
        items = self.ranker.items
        return torch.randint(items.num_embeddings, (self.negatives,), device=items.weight.device)

    def _shown(self, batch: TrainingBatch) -> ShownItems:
        shown = self.impressions
        assert shown is not None
        starts, ends = shown.offsets[batch.users], shown.offsets[batch.users + 1]
        counts = ends - starts
        rows = np.repeat(np.arange(len(batch.users)), counts)
        index = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts) + np.repeat(starts, counts)
        offsets = self.schedule.training.offsets
        lengths = offsets[batch.users + 1] - offsets[batch.users]
        positions = shown.history_lengths[index] - 1 - batch.first[rows]
        after = shown.history_lengths[index] == lengths[rows]
        kept = (positions >= 0) & ((positions < batch.histories.lengths.cpu().numpy()[rows]) | after)
        rows, positions, index, after = rows[kept], positions[kept], index[kept], after[kept]
        histories = batch.histories
        if after.any():
            some = np.unique(rows[after])
            whole = pad(self.schedule.training, batch.users[some], self.schedule.max_history)
            whole = whole._replace(users=torch.from_numpy(batch.users[some])).to(batch.targets.device)
            begins = np.full(len(batch.users), -1)  # of each user's whole history in the sequence
            begins[some] = lengths[some] - whole.lengths.cpu().numpy()
            moved = after | (begins[rows] == 0)  # a user whose whole history fits is read from it alone
            positions = np.where(moved, shown.history_lengths[index] - 1 - begins[rows], positions)
            rows = np.where(moved, len(batch.users) + np.searchsorted(some, rows), rows)
            used, rows = np.unique(rows, return_inverse=True)
            histories = Histories.stack([histories, whole]).rows(torch.from_numpy(used).to(batch.targets.device))
        columns = (rows, positions, *(field[index] for field in shown[2:]))  # items, slots, clicked, weights
        return ShownItems(histories, *(torch.from_numpy(column).to(batch.targets.device) for column in columns))
