"""User-kNN: what the users with the nearest tastes had, in order or repeat frequency as in next-basket kNN.

    score(x, i) = Σ_u s(x, u) t(u, i) / Σ_u s(x, u),   t(u, i) = Σ_b γ^b,   s = cosine of the tastes t,  k nearest u

b counts baskets back from the end of a history with item i in them; without known baskets each interaction is its own.
Sources: Sarwar et al. (EC 2000); decayed tastes, Hu et al. (TIFU-kNN, SIGIR 2020).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from adagrpo.lists.own import past_of
from adagrpo.lists.sources import CandidateSource
from adagrpo.sparse_rows import add_rows
from adagrpo.types import Histories, Ragged, indices_of

DECAY = 0.9  # γ
NEIGHBOURS = 100  # k
MOST_USERS = 50_000  # drawn, if there are more
FLOOR = 1e-3  # added before the logarithm


class NearestUsers(CandidateSource):
    """The tastes of training users; those nearest to a history's."""

    floor = FLOOR

    def __init__(self, training: Ragged, num_items: int, rows: Mapping[str, int]) -> None:
        """`rows` are of users by id as text: nobody is his own neighbour."""
        self._rows, kept = rows, np.arange(len(training))
        if len(training) > MOST_USERS:
            kept = np.sort(np.random.default_rng(0).choice(len(training), MOST_USERS, replace=False))
            training = training.rows(kept)
        self._place = np.full(int(kept.max(initial=-1)) + 2, -1)  # of each training user among the kept, last of none
        self._place[kept] = np.arange(len(kept))
        users = np.repeat(np.arange(len(training)), training.lengths)
        ends = np.repeat(training.offsets[1:], training.lengths) - 1
        ago = ends - np.arange(len(ends)) if training.baskets is None else training.baskets[ends] - training.baskets
        entries = (DECAY**ago).astype(np.float32), (users, training.values)
        self._tastes = sparse.coo_array(entries, shape=(len(training), num_items)).tocsr()
        norms = np.sqrt(self._tastes.multiply(self._tastes).sum(axis=1)).clip(1e-9)
        unit = sparse.csr_array(sparse.diags_array((1 / norms).astype(np.float32)) @ self._tastes)
        self._by_item = unit.T.tocsr()  # (V, U)
        self._users = self._by_item.indices.astype(np.int64)

    def scores(self, histories: Histories) -> Tensor:
        """Return (B, V) mean tastes of the nearest users; -inf for items none had."""
        past = past_of(histories)
        items, ago = past.items.cpu().numpy(), past.baskets.cpu().numpy()
        of_users = histories.user_rows(self._rows)
        themselves = self._place[np.where(of_users < len(self._place), of_users, -1)]
        found = np.zeros((len(items), self._tastes.shape[1]), np.float32)
        by_item, tastes = self._by_item, self._tastes
        for row, there in enumerate(items >= 0):
            near = np.zeros(by_item.shape[1], np.float32)
            weights = (DECAY ** ago[row, there]).astype(np.float32)
            add_rows(near, by_item, self._users, items[row, there].tolist(), weights)
            if themselves[row] >= 0:
                near[themselves[row]] = 0
            users = np.flatnonzero(near)
            if len(users) > NEIGHBOURS:
                users = users[np.argpartition(-near[users], NEIGHBOURS - 1)[:NEIGHBOURS]]
            shares = near[users] / max(float(near[users].sum()), 1e-9)
            begins = tastes.indptr[users].astype(np.int64)
            lengths = tastes.indptr[users + 1] - begins
            held = indices_of(begins, lengths)
            had = np.repeat(shares, lengths) * tastes.data[held]
            found[row] = np.bincount(tastes.indices[held], had, minlength=found.shape[1])
        found[found == 0] = -np.inf
        return torch.from_numpy(found).to(past.items.device)
