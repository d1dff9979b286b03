"""A model of trees as a reward: LightGBM, XGBoost or CatBoost over our features, the item table and a table of users.

See `adagrpo.rewards.model_files` for the files and `adagrpo.rewards.tables` for the features. Scores are raw.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import torch
from torch import Tensor

from adagrpo.errors import UserError
from adagrpo.rewards.external import users_of
from adagrpo.rewards.features import Features, Floats
from adagrpo.rewards.model_files import TreeModel
from adagrpo.rewards.tables import Tables, features_of
from adagrpo.types import Histories, ItemId

_FEW = 4096  # items that one thread scores: several would wait for each other longer, above all where a service is busy


class BoostedReward:
    """Implements `adagrpo.rewards.protocol.Reward`."""

    def __init__(
        self,
        model: TreeModel,
        features: Features,
        tables: Tables = Tables(),  # noqa: B008 (it is frozen)
        user_ids: Sequence[ItemId] = (),  # (U,)
    ) -> None:
        """Find the model's features; see `features_of` for errors."""
        self.model, self.features, self.tables, self.user_ids = model, features, tables, user_ids
        self.columns = features_of(model, tables)
        self.name = model.path.name

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        """Score (B, N) items, see `Reward.score`; each history's user is left out of all counts."""
        if not items.numel():
            return torch.zeros(items.shape, device=items.device)
        kinds = {column.of for column in self.columns}
        ours = self.features.of(histories, items) if "ours" in kinds else None
        wanted = np.maximum(items.cpu().numpy(), 0).ravel()
        users = np.zeros(0, np.int64)
        if "user" in kinds:  # the row of each user in the table, the one past its end where it has none
            rows, nobody = self.tables.rows, len(self.tables.users)
            found = [rows.get(str(user), nobody) for user in users_of(histories, self.user_ids)]
            users = np.repeat(np.array(found, np.int64), items.shape[1])
        table: list[pl.Series | Floats] = []
        for column in self.columns:
            if column.values is not None:
                table.append(column.values.gather(wanted if column.of == "item" else users))
            elif ours is not None:
                table.append(ours[:, :, column.column].ravel())
        threads = torch.get_num_threads() if items.numel() > _FEW else 1
        try:
            scores = self.model.predict(table, threads)
        except Exception as error:  # of a library: a missing or infinite value that its model does not take
            said = str(error).strip().partition("\n")[0][:200]
            raise UserError(f"reward {self.model.path}: raised {type(error).__name__}: {said}") from error
        return torch.from_numpy(np.asarray(scores, np.float32).reshape(items.shape)).to(items.device)
