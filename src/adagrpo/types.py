"""Frozen batches and results, with the shape of every field.

Letters, here and everywhere: `B` samples, `G` rollouts per sample, `L` levels of a Semantic ID, `K` codes per level,
`V` items, `M` in-batch negatives, `T` history positions, `D` width, `N` rows.
Items are integers `0 .. V-1` (rows of the catalogue); `-1` means "no item".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
ItemId = int | str  # as logs write it
COUNTED = 2**22  # values that are counted at a time


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths, stored end to end: row `i` is `values[offsets[i]:offsets[i + 1]]`."""

    values: NDArray[np.int32]  # (total,)
    offsets: NDArray[np.int64]  # (N + 1,), first 0, last total
    baskets: NDArray[np.int32] | None = field(default=None, kw_only=True)  # (total,) ascending in a row, if known
    days: NDArray[np.float64] | None = field(default=None, kw_only=True)  # (total,) time in days, if known

    @staticmethod
    def of(values: NDArray[np.int32], lengths: NDArray[np.int64]) -> Ragged:
        """Build from concatenated rows (Σ lengths,) and their lengths (N,)."""
        return Ragged(values, np.append(0, lengths.cumsum()).astype(np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:  # (N,)
        """Length of every row."""
        return np.diff(self.offsets)

    def row(self, index: int) -> NDArray[np.int32]:
        """Return one row."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def rows(self, indices: NDArray[np.integer]) -> Ragged:
        """Select rows."""
        lengths = self.lengths[indices]
        made = Ragged.of(self.parts(self.offsets[indices], lengths), lengths)
        if self.baskets is None:
            return made
        where = indices_of(self.offsets[indices], lengths)
        days = None if self.days is None else self.days[where]
        return Ragged(made.values, made.offsets, baskets=self.baskets[where], days=days)

    def parts(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int32]:
        """Concatenate slices of the values, from starts (B,) and of lengths (B,), to (Σ lengths,).

        >>> Ragged(np.array([5, 6, 7, 8], np.int32), np.array([0, 4])).parts(np.array([2, 0]), np.array([2, 1]))
        array([7, 8, 5], dtype=int32)
        """
        found: NDArray[np.int32] = self.values[indices_of(starts, lengths)]
        return found

    def counts(self, size: int) -> NDArray[np.int64]:  # (size,)
        """Count the values `0 .. size - 1`, with bounded memory.

        >>> Ragged(np.array([2, 0, 2], np.int32), np.array([0, 1, 3])).counts(4)
        array([1, 0, 2, 0])
        """
        total = np.zeros(size, np.int64)
        for first in range(0, len(self.values), COUNTED):
            total += np.bincount(self.values[first : first + COUNTED], minlength=size)
            self.release()
        return total

    def values_after(self, most: int) -> NDArray[np.unsignedinteger]:  # (total,)
        """Count the values behind each one in its row, up to `most`.

        >>> Ragged(np.array([2, 0, 2, 1], np.int32), np.array([0, 1, 4])).values_after(1).tolist()
        [0, 1, 1, 0]
        """
        found = np.full(len(self.values), most, np.min_scalar_type(most))
        for distance in range(most):
            found[self.offsets[1:][self.lengths > distance] - 1 - distance] = distance
        return found

    def positions_by_value(self, size: int) -> tuple[NDArray[np.integer], NDArray[np.int64]]:
        """Return (total,) positions of the values `0 .. size - 1`, by value, and (size + 1,) where each one's begin."""
        positions = np.argsort(self.values, kind="stable")
        self.release()
        if len(positions) < 2**31:
            positions = positions.astype(np.int32)  # half the memory
        return positions, np.append(0, self.counts(size).cumsum())

    def release(self) -> None:
        """Free memory of values that can be read again from disk."""


def indices_of(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return `starts[i], starts[i] + 1, ...`, `lengths[i]` of them, for each (B,) slice.

    >>> indices_of(np.array([7, 2]), np.array([1, 2]))
    array([7, 2, 3])
    """
    within = np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)
    return np.asarray(np.repeat(starts, lengths) + within)


@dataclass(frozen=True)
class Cases:
    """Evaluation cases: predict `targets[i]`, or all of `relevant` row `i`, of user `users[i]` from history row `i`."""

    users: NDArray[np.int32]  # (N,) row of the user in users.parquet
    histories: Ragged  # N rows, oldest item first, at least one item each
    targets: NDArray[np.int32]  # (N,) the item; of a basket one of its items, drawn
    relevant: Ragged | None = None  # N rows, the distinct items of each basket; None where a case is one interaction
    days: NDArray[np.float64] | None = None  # (N,) time of the case in days, if known

    def __len__(self) -> int:
        return len(self.users)

    def asking(self, rows: NDArray[np.integer]) -> Asking:
        """Return who asks for the lists of some cases, and when."""
        times = [None] * len(rows) if self.days is None else [float(day) * 86_400 for day in self.days[rows]]
        return Asking(self.users[rows].tolist(), times, rows=True)

    @property
    def logged(self) -> NDArray[np.int64]:
        """(N,) the logged items; of baskets (N, R), padded with -1."""
        if self.relevant is None:
            return self.targets.astype(np.int64)
        lengths = self.relevant.lengths
        padded = np.full((len(self), int(lengths.max(initial=1))), -1, np.int64)
        padded[np.arange(padded.shape[1]) < lengths[:, None]] = self.relevant.values
        return padded

    @property
    def sizes(self) -> NDArray[np.int64] | None:
        """(N,) items of each basket; None where a case is one interaction."""
        return None if self.relevant is None else self.relevant.lengths


class Past(NamedTuple):
    """All that each of `B` users had, oldest first, padded on the right with -1."""

    items: Tensor  # (B, H) int64
    baskets: Tensor  # (B, H) int64, how many baskets ago, 0 the last; without known baskets each item is its own
    days: Tensor  # (B, H) float32, how many days ago, NaN where that is not known
    grouped: bool = False  # the run knows baskets

    def to(self, device: torch.device) -> Past:
        """Move to a device."""
        return Past(self.items.to(device), self.baskets.to(device), self.days.to(device), self.grouped)

    def rows(self, kept: Tensor) -> Past:
        """Select some users."""
        return Past(self.items[kept], self.baskets[kept], self.days[kept], self.grouped)


class Asking(NamedTuple):
    """Who asks for each of `B` lists, and when."""

    users: Sequence[int | str | None]  # (B,) ids of the logs, or rows of users.parquet if `rows`; None: unknown
    times: Sequence[float | None]  # (B,) seconds since 1970; None: unknown
    rows: bool = False

    def to(self, device: torch.device) -> Asking:
        """Return itself: nothing of it is on a device."""
        return self

    def of(self, kept: Tensor) -> Asking:
        """Select some lists."""
        indices = torch.arange(len(self.users))[kept.cpu()].tolist()
        return Asking([self.users[row] for row in indices], [self.times[row] for row in indices], self.rows)


class Histories(NamedTuple):
    """A batch of histories, oldest item first, padded on the right."""

    items: Tensor  # (B, T) int64; padding holds 0 and is never read, see `lengths`
    lengths: Tensor  # (B,) int64, at least 1
    users: Tensor | None = None  # (B,) int64, whose histories they are, where a reward may want to know
    older: Tensor | None = None  # (B, O) int64, what came before `items`, -1 where nothing; for masking alone
    past: Past | None = None  # where a source reads more than `items`
    asking: Asking | None = None  # where lists are measured or served

    @property
    def whole(self) -> Tensor:  # (B, T + O) int64
        """All items of each history, older ones included, unordered; padded with -1."""
        real = torch.arange(self.items.shape[1], device=self.items.device) < self.lengths.unsqueeze(1)
        seen = self.items.masked_fill(~real, -1)
        return seen if self.older is None else torch.cat([seen, self.older], dim=1)

    def to(self, device: torch.device) -> Histories:
        """Move to a device."""
        return Histories(*(None if part is None else part.to(device) for part in self))  # type: ignore[arg-type]

    def rows(self, kept: Tensor) -> Histories:
        """Select some histories."""
        users = None if self.users is None else self.users[kept]
        older = None if self.older is None else self.older[kept]
        past = None if self.past is None else self.past.rows(kept)
        asking = None if self.asking is None else self.asking.of(kept)
        return Histories(self.items[kept], self.lengths[kept], users, older, past, asking)

    def user_rows(self, known: Mapping[str, int]) -> NDArray[np.int64]:  # (B,)
        """Return whose histories they are, as rows of users.parquet, `known` by id as text; -1 where unknown."""
        if self.asking is not None:
            rows = self.asking.users if self.asking.rows else [known.get(str(user), -1) for user in self.asking.users]
            return np.asarray([-1 if row is None else row for row in rows], np.int64)
        if self.users is not None:
            return np.asarray(self.users.cpu().numpy(), np.int64)
        return np.full(len(self.lengths), -1)

    def holds(self, items: Tensor) -> Tensor:
        """Return a (B, N) mask of `items` (B, N) in the whole history of their row; False for -1."""
        ordered = self.whole.sort(dim=1).values
        place = torch.searchsorted(ordered, items.contiguous()).clamp(max=ordered.shape[1] - 1)
        return (ordered.gather(1, place) == items) & (items >= 0)

    @staticmethod
    def stack(parts: Sequence[Histories]) -> Histories:
        """Concatenate batches."""
        length = max(part.items.shape[1] for part in parts)
        items = [torch.nn.functional.pad(part.items, (0, length - part.items.shape[1])) for part in parts]
        users = [part.users for part in parts if part.users is not None]
        older = [part.older for part in parts if part.older is not None]
        before = max((part.shape[1] for part in older), default=0)
        older = [torch.nn.functional.pad(part, (0, before - part.shape[1]), value=-1) for part in older]
        lengths = torch.cat([part.lengths for part in parts])
        owners = torch.cat(users) if users else None
        return Histories(torch.cat(items), lengths, owners, torch.cat(older) if older else None)


class Rollouts(NamedTuple):
    """A group of `G` sampled Semantic IDs for each of `B` samples."""

    codes: Tensor  # (B, G, L) int64
    items: Tensor  # (B, G) int64, -1 where the codes name no item
    log_probs: Tensor  # (B, G, L) float32, of the distribution that was really sampled

    @property
    def valid(self) -> Tensor:  # (B, G) bool
        """Mask of the codes that name an item."""
        return self.items >= 0


Share = Annotated[float, Field(ge=0, le=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
