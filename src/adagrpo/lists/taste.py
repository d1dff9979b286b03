"""What a user took, and passed over, of what he was shown.

    taste    ŵ_u · z_i,   ŵ_u = argmin_w Σ_n (y_n - p_n - w · z_{i_n})² + λ |w|²   over u's impressions n
    passed   -log(1 + n_ui)   n_ui impressions of item i that u did not click

`y` is the click, `p` the item's smoothed click-through rate in units of its slot's, `z` an item's description: its
vector's principal components, its most frequent attributes and, for each column of numbers, a soft place among the
column's quantiles. Each has length 1. Source: Hoerl and Kennedy (1970).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from adagrpo.lists.sources import CandidateSource, click_through
from adagrpo.types import Histories

Floats = NDArray[np.float32]

PENALTY = 10.0  # λ
MOST_SHOWN = 1_000  # impressions of a user, the last ones
MOST_ATTRIBUTES, LEAST_SHARE = 200, 0.005  # of the items that have an attribute that is read
WIDTH = 32  # of vectors
QUANTILES = 8  # of a column of numbers


class Tastes(CandidateSource):
    """Users' weights of descriptions."""

    def __init__(self, users: Floats, items: Floats, rows: Mapping[str, int]) -> None:
        """`users` are (U, D) weights, `items` (V, D) descriptions, `rows` of users by id as text."""
        self._users = torch.from_numpy(np.concatenate([users, np.zeros_like(users[:1])]))
        self._items, self._rows = torch.from_numpy(items), rows

    def scores(self, histories: Histories) -> Tensor:
        """Return (B, V) weighted sums; 0 for a user who is not known."""
        device = histories.items.device
        users = self._users[torch.from_numpy(histories.user_rows(self._rows))]
        return (users @ self._items.T).to(device)


class Passed(CandidateSource):
    """Items that a user was shown and did not take."""

    def __init__(
        self,
        users: NDArray[np.int64],  # (N,) of the impressions
        items: NDArray[np.int64],  # (N,)
        clicked: NDArray[np.bool_],  # (N,)
        num_items: int,
        rows: Mapping[str, int],
    ) -> None:
        """`rows` are of users by id as text."""
        where, size = (users[~clicked], items[~clicked]), int(users.max(initial=-1)) + 2  # the last row: unknown users
        self._counts = sparse.coo_array((np.ones(len(where[0]), np.float32), where), shape=(size, num_items)).tocsr()
        self._rows = rows

    def scores(self, histories: Histories) -> Tensor:
        """Return (B, V) -log(1 + times)."""
        rows = histories.user_rows(self._rows)
        counts = self._counts[np.where(rows < self._counts.shape[0], rows, -1)].toarray()
        return torch.from_numpy(-np.log1p(counts)).to(histories.items.device)


def descriptions(vectors: Floats, attributes: Sequence[Sequence[str]], columns: pl.DataFrame) -> Floats:
    """Return (V, D) descriptions of items.

    Args:
        vectors: (V, W); W may be 0.
        columns: (V,) of the item table as they are; those of numbers are read.
    """
    parts = [vectors]
    if vectors.shape[1] > WIDTH:
        _, directions = np.linalg.eigh(vectors.T @ vectors)
        parts = [np.asarray(vectors @ directions[:, -WIDTH:])]
    counts = pl.Series([one for each in attributes for one in set(each)], dtype=pl.String).value_counts(sort=True)
    frequent = counts.filter(pl.col("count") >= LEAST_SHARE * len(attributes)).head(MOST_ATTRIBUTES)
    place = {name: column for column, name in enumerate(frequent.sort("count", counts.columns[0])[counts.columns[0]])}
    known = np.zeros((len(attributes), len(place)), np.float32)
    for row, each in enumerate(attributes):
        known[row, [place[one] for one in each if one in place]] = 1.0
    parts.append(known)
    for name in columns.columns:
        numbers = columns[name].cast(pl.Float64, strict=False).to_numpy()
        there = np.isfinite(numbers)
        if there.mean() > 0.5 and len(np.unique(numbers[there])) > QUANTILES:
            order = np.zeros(len(numbers))
            ranks = np.searchsorted(np.sort(numbers[there]), numbers[there], side="left")
            order[there] = ranks / max(1, there.sum() - 1)
            near = 1 - np.abs(order[:, None] - np.linspace(0, 1, QUANTILES)) * (QUANTILES - 1)
            parts.append(np.where(there[:, None], near.clip(0), 0).astype(np.float32))
    units = [part / np.linalg.norm(part, axis=1, keepdims=True).clip(1e-9) for part in parts if part.shape[1]]
    if not units:
        return np.zeros((len(attributes), 1), np.float32)
    joined = np.concatenate(units, axis=1)
    return np.asarray(joined / np.linalg.norm(joined, axis=1, keepdims=True).clip(1e-9), np.float32)


def user_tastes(
    users: NDArray[np.int64],  # (N,) of the impressions, oldest first
    items: NDArray[np.int64],  # (N,)
    clicked: NDArray[np.bool_],  # (N,)
    slots: NDArray[np.int64] | None,  # (N,)
    described: Floats,  # (V, D)
    num_users: int,
) -> Floats:
    """Return (U, D) weights; 0 for users who were shown nothing."""
    expected = click_through(items, clicked, len(described))[items]
    if slots is not None:
        of_slots = click_through(slots, clicked, int(slots.max(initial=0)) + 1)[slots]
        mean = (clicked.sum() + 1.0) / (len(clicked) + 2.0)
        expected = np.minimum(1.0, expected * of_slots / mean)
    left = (clicked - expected).astype(np.float32)
    order = np.argsort(users, kind="stable")
    ends = np.bincount(users, minlength=num_users).cumsum()
    found = np.zeros((num_users, described.shape[1]), np.float32)
    for user, (first, last) in enumerate(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)):
        rows = order[max(first, last - MOST_SHOWN) : last]
        if not len(rows):
            continue
        z = described[items[rows]]
        if len(rows) < z.shape[1]:
            found[user] = z.T @ np.linalg.solve(z @ z.T + PENALTY * np.eye(len(z), dtype=np.float32), left[rows])
        else:
            found[user] = np.linalg.solve(z.T @ z + PENALTY * np.eye(z.shape[1], dtype=np.float32), z.T @ left[rows])
    return found
