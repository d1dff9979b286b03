"""The ground truth of a simulated marketplace, for evaluation only.

    utility(u, i) = sigmoid(users_u . items_i + bias_i)

is the probability that user `u` chooses an examined item `i`, 0 if `u` owns it. Tastes move, so each purchase has its
own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.special import expit

from adagrpo.errors import UserError
from adagrpo.storage.writing import atomic_file
from adagrpo.types import Floats, Ints


@dataclass(frozen=True)
class Truth:
    """Users just before their last purchase, or else at their last visit."""

    user_ids: tuple[str, ...]  # U
    item_ids: tuple[str, ...]  # V
    users: NDArray[np.float32]  # (U, D) taste, scaled so that `users @ items.T + bias` are logits
    items: NDArray[np.float32]  # (V, D) unit vectors
    bias: NDArray[np.float32]  # (V,)
    owned: Ints  # (P,) ascending user * V + item of the purchases before the last one
    purchases: Ints = field(default_factory=lambda: np.empty(0, np.int64))  # (Q,) user * V + item, by user and time
    tastes: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))  # (Q, D) just before each

    def utility(self, user_index: Ints, item_index: Ints) -> Floats:  # user_index (N,), item_index (N, K) -> (N, K)
        """Return the probability of choosing an examined item; 0 for owned ones."""
        if user_index.ndim != 1 or item_index.ndim != 2 or len(user_index) != len(item_index):
            raise ValueError(f"want users (N,) and items (N, K), got {user_index.shape} and {item_index.shape}")
        keys = user_index.astype(np.int64)[:, None] * len(self.item_ids) + item_index
        index = np.searchsorted(self.owned, keys)
        has = index < len(self.owned)
        has[has] = self.owned[index[has]] == keys[has]
        return self._utility(self.users[user_index], item_index, has)

    # user_index and bought (N,), item_index (N, K) -> (N, K)
    def utility_before(self, user_index: Ints, bought: Ints, item_index: Ints) -> Floats:
        """Return the utility just before `bought` was purchased; UserError if it was not."""
        items = len(self.item_ids)
        known, order = self._by_key

        def moments(keys: Ints) -> Ints:
            index = np.searchsorted(known, keys)
            inside = index < len(known)
            moment = np.full(keys.shape, -1)
            moment[inside] = np.where(known[index[inside]] == keys[inside], order[index[inside]], -1)
            return moment

        now = moments(user_index.astype(np.int64) * items + bought)
        if len(now) and now.min() < 0:
            user, item = int(user_index[now.argmin()]), int(bought[now.argmin()])
            raise UserError(
                f"truth: no purchase of '{self.item_ids[item]}' by '{self.user_ids[user]}'; run the simulation again"
            )
        then = moments(user_index.astype(np.int64)[:, None] * items + item_index)
        return self._utility(self.tastes[now], item_index, (then >= 0) & (then < now[:, None]))

    @cached_property
    def _by_key(self) -> tuple[Ints, Ints]:  # (Q,) each
        order = np.argsort(self.purchases, kind="stable")
        return self.purchases[order], order

    def _utility(self, tastes: NDArray[np.float32], item_index: Ints, owned: NDArray[np.bool_]) -> Floats:
        logits = np.einsum("nd,nkd->nk", tastes, self.items[item_index]) + self.bias[item_index]
        return np.asarray(np.where(owned, 0.0, expit(logits.astype(np.float64))))

    def aligned(self, user_ids: Sequence[str], item_ids: Sequence[str]) -> Truth:
        """Return the truth for other rows; UserError if an id is unknown."""
        users, items = _rows(user_ids, self.user_ids, "user"), _rows(item_ids, self.item_ids, "item")
        new_user, new_item = np.full(len(self.user_ids), -1), np.full(len(self.item_ids), -1)
        new_user[users], new_item[items] = np.arange(len(users)), np.arange(len(items))

        def renumbered(keys: Ints) -> tuple[Ints, NDArray[np.bool_]]:
            owner, item = new_user[keys // len(self.item_ids)], new_item[keys % len(self.item_ids)]
            kept = (owner >= 0) & (item >= 0)
            return owner[kept] * len(items) + item[kept], kept

        owned, _ = renumbered(self.owned)
        purchases, kept = renumbered(self.purchases)
        return Truth(
            tuple(user_ids),
            tuple(item_ids),
            self.users[users],
            self.items[items],
            self.bias[items],
            np.sort(owned),
            purchases,
            self.tastes[kept],
        )

    def save(self, directory: Path) -> None:
        """Write truth.safetensors, users.parquet and items.parquet."""
        directory.mkdir(parents=True, exist_ok=True)
        names = ("users", "items", "bias", "owned", "purchases", "tastes")
        arrays = {name: getattr(self, name) for name in names}
        with atomic_file(directory / "truth.safetensors") as path:
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
        pl.DataFrame({"user_id": self.user_ids}).write_parquet(directory / "users.parquet")
        pl.DataFrame({"item_id": self.item_ids}).write_parquet(directory / "items.parquet")

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what `save` wrote; UserError for a missing or damaged file."""
        try:
            users = pl.read_parquet(directory / "users.parquet")["user_id"].to_list()
            items = pl.read_parquet(directory / "items.parquet")["item_id"].to_list()
            arrays = load_file(directory / "truth.safetensors")
            truth = cls(tuple(users), tuple(items), **arrays)
        except (OSError, pl.exceptions.PolarsError, SafetensorError, TypeError) as error:
            first = str(error).partition("\n")[0]
            raise UserError(f"{directory}: not a truth folder ({first}); run the simulation again") from error
        return truth


def _rows(ids: Sequence[str], all_ids: Sequence[str], kind: str) -> Ints:
    row = {name: index for index, name in enumerate(all_ids)}
    missing = [name for name in ids if name not in row]
    if missing:
        raise UserError(f"truth: unknown {kind} '{missing[0]}'; use the truth of the simulation that made the logs")
    return np.array([row[name] for name in ids], dtype=np.int64)
