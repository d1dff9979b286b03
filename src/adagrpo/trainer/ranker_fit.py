"""Fitting the sequential ranker: on impressions with clicks, or on logged next items.

What was shown is no random sample of what there is. Where the platform logged the probability `p` of showing an item,
an impression may weigh 1 / max(p, floor), so that the mean loss over impressions estimates that over all items:

    ips    (1 / n) Σ w l         unbiased down to the floor, and as noisy as the weights
    snips  Σ w l / Σ w           bounded weights that sum to one; a bias that falls with the batch

Source: Schnabel et al., Recommendations as Treatments, 2016; Swaminathan & Joachims, The Self-Normalized Estimator for
Counterfactual Learning, 2015. Where we depart: the sums are over the impressions of an optimiser step.

How a step is cut into micro-batches changes neither: losses are summed and divided by the counts of the whole step, and
its micro-batches share the items that are drawn as negatives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, assert_never

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from adagrpo.data.sequences import pad
from adagrpo.rewards.sequential import SequentialRanker
from adagrpo.trainer.batches import BatchSchedule, TrainingBatch, keyed_generator
from adagrpo.types import Histories


class Impressions(NamedTuple):
    """Impressions: items shown to a user after so many interactions, sorted by user."""

    offsets: NDArray[np.int64]  # (U + 1,)
    history_lengths: NDArray[np.int64]  # (total,)
    items: NDArray[np.int64]  # (total,)
    slots: NDArray[np.int64]  # (total,)
    clicked: NDArray[np.bool_]  # (total,)
    weights: NDArray[np.float32]  # (total,) 1 / propensity, or 1

    @classmethod
    def from_table(cls, table: pl.DataFrame, num_users: int, propensity_floor: float | None = None) -> Impressions:
        """Impressions without any history are left out: there is no state to score them from.

        Args:
            table: see `adagrpo.data.prepared.load_impressions`.
            num_users: `U`.
            propensity_floor: where given, weights are 1 / max(propensity, floor), and the table has propensities.
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
    """The `N` impressions of a micro-batch, and the histories that they come after."""

    histories: Histories  # (B + E, T) the batch's, and the whole ones of `E` users who were shown something after them
    rows: Tensor  # (N,) int64 of these histories
    positions: Tensor  # (N,) int64
    items: Tensor  # (N,) int64
    slots: Tensor  # (N,) int64
    clicked: Tensor  # (N,) bool
    weights: Tensor  # (N,) float32


class RankerMicro(NamedTuple):
    """A micro-batch, and what is common to all those of its optimiser step."""

    batch: TrainingBatch
    shown: ShownItems | None  # for impressions
    total: float  # samples of the step, or the sum of their weights; at least 1
    clicks: int  # of the step
    negatives: Tensor | None  # (S,) int64 items; None where the step is this micro-batch alone


class RankerFit:
    """A `Task`: see `SequentialRanker` for the three losses."""

    term_norms_every = 0
    stride = 1

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

    def users(self, step: int) -> list[int]:
        """Rows of the users of a step."""
        return [int(user) for batch in self.schedule.batches(step) for user in batch.users]

    def begin(self, step: int) -> tuple[Sequence[RankerMicro], dict[str, float]]:
        """Micro-batches of a step, what was shown in them, and the items drawn for all of them."""
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
        """The term `loss`, the micro-batch's part of the mean over the step; `sampled` beside it for impressions."""
        batch = micro.batch
        self.ranker.train()
        if micro.shown is not None:
            return self._impression_terms(micro, micro.shown), {}
        where = (batch.histories, batch.rows, batch.positions, batch.targets)
        match self.kind:
            case "cross_entropy":
                values = self.ranker.next_item_loss(*where)
            case "sampled":
                values = self.ranker.sampled_loss(*where, self._negatives(micro))
            case "impressions":
                raise ValueError("a micro-batch of impressions says what was shown")
            case _:
                assert_never(self.kind)
        return {"loss": values.sum() / micro.total}, {}

    def _impression_terms(self, micro: RankerMicro, shown: ShownItems) -> dict[str, Tensor]:
        """Clicks among what was shown and, with negatives, each clicked item among items drawn at random.

        The second term makes the ranker usable on any item, and biases it: what was never shown counts as unwanted.
        """
        histories, rows, positions, items, slots, clicked, weights = shown
        values = self.ranker.impression_loss(histories, rows, positions, items, slots, clicked)
        terms = {"loss": (weights * values).sum() / micro.total}
        if self.negatives and bool(clicked.any()):
            chosen = (rows[clicked], positions[clicked], items[clicked])
            losses = self.ranker.sampled_loss(histories, *chosen, self._negatives(micro))
            terms["sampled"] = losses.sum() / micro.clicks
        return terms

    def _negatives(self, micro: RankerMicro) -> Tensor:
        if micro.negatives is not None:
            return micro.negatives
        items = self.ranker.items
        return torch.randint(items.num_embeddings, (self.negatives,), device=items.weight.device)

    def _shown(self, batch: TrainingBatch) -> ShownItems:
        """Every impression that falls into the batch's histories, or comes after all that its user has.

        Of a batch's histories the last item is a target alone; a split in time leaves impressions that come after it.
        """
        shown = self.impressions
        assert shown is not None
        starts, ends = shown.offsets[batch.users], shown.offsets[batch.users + 1]
        counts = ends - starts
        rows = np.repeat(np.arange(len(batch.users)), counts)
        index = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts) + np.repeat(starts, counts)
        offsets = self.schedule.training.offsets
        lengths = offsets[batch.users + 1] - offsets[batch.users]
        cut = np.maximum(lengths - (self.schedule.max_history + 1), 0)  # items that padding dropped from the front
        positions = shown.history_lengths[index] - 1 - cut[rows]
        kept = (positions >= 0) & (positions <= (lengths - 1 - cut)[rows])
        rows, positions, index = rows[kept], positions[kept], index[kept]
        after = positions == (lengths - 1 - cut)[rows]
        histories = batch.histories
        if after.any():
            some, place = np.unique(rows[after], return_inverse=True)
            whole = pad(self.schedule.training, batch.users[some], self.schedule.max_history)
            whole = whole._replace(users=torch.from_numpy(batch.users[some])).to(batch.targets.device)
            histories = Histories.stack([histories, whole])
            rows[after], positions[after] = len(batch.users) + place, whole.lengths.cpu().numpy()[place] - 1
        columns = (rows, positions, *(field[index] for field in shown[2:]))  # items, slots, clicked, weights
        return ShownItems(histories, *(torch.from_numpy(column).to(batch.targets.device) for column in columns))

    def state(self) -> dict[str, float]:
        """Nothing."""
        return {}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Nothing."""
