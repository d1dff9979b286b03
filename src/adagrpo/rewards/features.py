"""Engineered features of a history and a candidate, for tree models.

    x_1 .. x_T   the history that the policy sees, oldest first;  w_t = γ^(T - t),  γ = 0.7
    s(j, i)      = c(j, i) / √(n_i n_j),  c(j, i) users with both items, n_i users with item i       (item-kNN's cosine)
    J(j, i)      = |A_i ∩ A_j| / |A_i ∪ A_j|,  A_i the attributes of item i
    e_i          the text vector of item i, of length one, or zero

    name                 value
    history_length       T
    history_popularity   mean of log(1 + n) over the history
    popularity           log(1 + n_i)
    popularity_gap       popularity - history_popularity
    age                  mean number of interactions that followed i's in its users' sequences: low is recent
    repeats              how often the history holds i
    knn_last             s(x_T, i)
    knn_history          Σ_t w_t s(x_t, i)
    knn_best             max_t s(x_t, i)
    next_last            times that i followed x_T directly, or was in the basket after its, / (1 + times of anything)
    attributes_last      J(x_T, i)
    attributes_history   Σ_t w_t J(x_t, i) / Σ_t w_t
    text_last            e_xT · e_i
    text_history         Σ_t w_t e_xt · e_i / Σ_t w_t

Counts are of training interactions without the user's own: the user's training sequence, or the history if the user is
unknown, is taken out of n_i, c(j, i), age and next_last. n_j of history items is unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from adagrpo.config.reward import CountName
from adagrpo.data.pairs import PairCounts, common_users, successions
from adagrpo.data.sequences import basket_starts, pad
from adagrpo.semantic_ids.embeddings import text_vectors
from adagrpo.types import Histories, Ragged

FEATURES = ("history_length", "history_popularity", *get_args(CountName))  # the first two are of the history alone
DECAY = 0.7
TEXT_WIDTH = 64
_LANES = 8  # of numpy's sums
_BLOCK = 2**21  # numbers at a time in what is done for every candidate and history item

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class Features:
    """Statistics of the training split from which features are computed."""

    def __init__(
        self,
        training: Ragged,  # of the training split only, one row per user
        attributes: Sequence[Sequence[str]],
        texts: Sequence[str],
        *,
        first: int | None = None,  # text vectors are fitted on this many first items; None: all
    ) -> None:
        items = len(attributes)
        self.training = training
        together, followed = common_users(training, items), successions(training, items, shared=False)
        self.users = together.diagonal().astype(np.float32)  # (V,) n_i
        self.followed = np.asarray(followed.sum(axis=1), np.float32)  # (V,)
        self.together, self.next = PairCounts.of(together), PairCounts.of(followed)
        self.occurrences = np.bincount(training.values, minlength=items).astype(np.float32)  # (V,)
        later = np.repeat(training.offsets[1:], training.lengths) - 1 - np.arange(len(training.values))
        self.later = np.bincount(training.values, later, minlength=items).astype(np.float32)  # (V,) Σ over occurrences
        self.starts: Ragged | None = None  # of each item's basket, from the user's first item; None: each is its own
        if training.baskets is not None:
            starts = basket_starts(training) - np.repeat(training.offsets[:-1], training.lengths)
            self.starts = Ragged(starts.astype(np.int32), training.offsets)
        self.attributes, self.attribute_counts = _indicators(attributes)
        self.texts = text_vectors(texts, width=TEXT_WIDTH, first=first) if any(texts) else None

    def of(self, histories: Histories, items: Tensor) -> Floats:  # items (B, N) -> (B, N, F)
        """Return `table` for the arguments of `Reward.score`."""
        users = None if histories.users is None else histories.users.cpu().numpy()
        padded, lengths, wanted = (part.cpu().numpy() for part in (histories.items, histories.lengths, items))
        return self.table(padded, lengths, wanted, users)

    def table(
        self,
        histories: Ints,  # (B, T) padded on the right
        lengths: Ints,  # (B,) at least 1
        items: Ints,  # (B, N)
        users: Ints | None = None,  # (B,) rows of the training sequences
    ) -> Floats:  # (B, N, F)
        """Return the (B, N, F) features, in the order of `FEATURES`; `users` are rows of the training sequences."""
        own_width = int(self.training.lengths[users].max(initial=0)) if users is not None else histories.shape[1]
        per_row = max(items.shape[1], histories.shape[1]) * max(histories.shape[1], own_width, 1)
        values = np.empty((*items.shape, len(FEATURES)), np.float32)
        # sums in blocks of eight are bit-identical whatever the padding (up to 128 positions)
        histories = np.pad(histories, ((0, 0), (0, -histories.shape[1] % _LANES)))
        for first in range(0, len(items), step := max(1, _BLOCK // max(1, per_row))):
            rows = slice(first, first + step)
            width = -(-max(1, int(lengths[rows].max())) // _LANES) * _LANES
            own = self._own(histories[rows, :width], lengths[rows], None if users is None else users[rows])
            values[rows] = self._block(histories[rows, :width], lengths[rows], items[rows].clip(min=0), *own)
        return values

    def _own(self, histories: Ints, lengths: Ints, users: Ints | None) -> tuple[Ints, Ints, Ints]:
        """(B, S) items to take out of the counts, padded with -1; their (B,) lengths; (B, S) starts of baskets."""
        starts = np.tile(np.arange(histories.shape[1]), (len(histories), 1))
        if users is not None:
            lengths = self.training.lengths[users]
            there = np.flatnonzero(lengths > 0)
            histories = np.zeros((len(users), int(lengths.max(initial=0))), np.int64)
            if len(there):
                histories[there] = pad(self.training, users[there], histories.shape[1]).items.numpy()
            starts = np.tile(np.arange(histories.shape[1]), (len(users), 1))
            if len(there) and self.starts is not None:
                starts[there] = pad(self.starts, users[there], histories.shape[1]).items.numpy()
        return np.where(np.arange(histories.shape[1]) < lengths[:, None], histories, -1), lengths, starts

    def _block(self, histories: Ints, lengths: Ints, items: Ints, own: Ints, own_lengths: Ints, starts: Ints) -> Floats:
        size, width = histories.shape
        positions = np.arange(width)
        real = positions < lengths[:, None]  # (B, T)
        weights = np.where(real, DECAY ** np.maximum(lengths[:, None] - 1 - positions, 0), 0.0).astype(np.float32)
        total = weights.sum(1)[:, None]  # (B, 1)
        last = histories[np.arange(size), lengths - 1][:, None]  # (B, 1)
        mine = own[:, None, :] == items[:, :, None]  # (B, N, S)
        has = mine.any(2).astype(np.float32)  # (B, N) the user is one of the item's users
        # where the user is not known, a history may hold what training never counted
        known = np.maximum(self.users[items] - has, 0.0)
        popular = np.where(real, np.log1p(self.users[histories]), 0.0).sum(1)[:, None] / lengths[:, None]
        age = (mine * (own_lengths[:, None] - 1 - np.arange(own.shape[1]))[:, None, :]).sum(2)
        occurrences = self.occurrences[items] - mine.sum(2)
        # the user counts in c(j, i) with both of them alone: a history may hold what came after training
        counted = (own[:, None, :] == histories[:, :, None]).any(2)  # (B, T)
        both = self.together.at(histories[:, None, :], items[:, :, None]) - has[:, :, None] * counted[:, None, :]
        norms = np.sqrt(np.maximum(known[:, :, None] * self.users[histories][:, None, :], 1.0))
        near = np.asarray(np.maximum(both, 0.0) / norms, np.float32) * real[:, None, :]  # cosine, (B, N, T)
        alike = self._overlap(histories, items, real)  # (B, N, T)
        ends = np.broadcast_to((lengths - 1)[:, None, None], (*items.shape, 1))
        columns = (
            np.broadcast_to(lengths[:, None], items.shape),
            np.broadcast_to(popular, items.shape),
            np.log1p(known),
            np.log1p(known) - popular,
            np.maximum(self.later[items] - age, 0.0) / np.maximum(occurrences, 1.0),
            ((histories[:, None, :] == items[:, :, None]) & real[:, None, :]).sum(2),
            np.take_along_axis(near, ends, 2)[:, :, 0],
            (near * weights[:, None, :]).sum(2),
            near.max(2),
            self._next(last, items, own, starts, mine),
            np.take_along_axis(alike, ends, 2)[:, :, 0],
            (alike * weights[:, None, :]).sum(2) / total,
            *self._text(histories, last, items, weights / total),
        )
        return np.stack([np.asarray(column, np.float32) for column in columns], axis=2)

    def _next(self, last: Ints, items: Ints, own: Ints, starts: Ints, mine: NDArray[np.bool_]) -> Floats:
        held = np.zeros(own.shape, np.int64)  # (B, S) at the start of each basket, how often it holds the last item
        np.add.at(held, (np.arange(len(own))[:, None], starts), own == last)
        before = np.take_along_axis(starts, (starts - 1).clip(0), 1)  # the start of the basket before
        follows = np.where((starts > 0) & (own >= 0), np.take_along_axis(held, before, 1), 0)
        followed = np.where(mine, follows[:, None, :], 0).sum(2)  # (B, N) by the user's own
        others = np.maximum(self.next.at(last, items) - followed, 0.0)
        any_others = np.maximum(self.followed[last] - follows.sum(1)[:, None], 0.0)
        return np.asarray(others / (1.0 + any_others), np.float32)

    def _overlap(self, histories: Ints, items: Ints, real: NDArray[np.bool_]) -> Floats:
        width, offsets = histories.shape[1], self.attributes.indptr
        row, position = np.nonzero(real)
        seen, of_seen = _slices(offsets, histories[row, position])
        held, of_held = _slices(offsets, items.ravel())  # of candidates, numbered through all samples
        if not len(seen) or not len(held):
            return np.zeros((*items.shape, width), np.float32)
        # attributes of one sample's history, and which of its positions have each; a candidate adds up those it shares
        columns = self.attributes.shape[1]
        keys, index = np.unique(row[of_seen] * columns + self.attributes.indices[seen], return_inverse=True)
        has = np.zeros((len(keys), width), np.float32)
        has[index, position[of_seen]] = 1.0
        wanted = of_held // items.shape[1] * columns + self.attributes.indices[held]
        found = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
        common = np.flatnonzero(keys[found] == wanted)
        shared = np.zeros((items.size, width), np.float32)
        if len(common):
            starts = np.flatnonzero(np.diff(of_held[common], prepend=-1))
            shared[of_held[common[starts]]] = np.add.reduceat(has[found[common]], starts, axis=0)
        shared = shared.reshape(*items.shape, width)
        counts = self.attribute_counts
        either = counts[histories][:, None, :] + counts[items][:, :, None] - shared
        return np.asarray(shared / np.maximum(either, 1.0))

    def _text(self, histories: Ints, last: Ints, items: Ints, weights: Floats) -> tuple[Floats, Floats]:
        if self.texts is None:
            nothing = np.zeros(items.shape, np.float32)
            return nothing, nothing
        vectors = self.texts[items]  # (B, N, W)
        taste = np.einsum("bt,btw->bw", weights, self.texts[histories])
        return np.einsum("bnw,bw->bn", vectors, self.texts[last[:, 0]]), np.einsum("bnw,bw->bn", vectors, taste)


def _slices(offsets: NDArray[np.integer], rows: Ints) -> tuple[Ints, Ints]:
    """(T,) indices of the entries of rows of a sparse matrix, row by row, and which of `rows` each is of."""
    starts, counts = offsets[rows].astype(np.int64), offsets[rows + 1] - offsets[rows]
    of_row = np.repeat(np.arange(len(rows)), counts)
    return np.arange(len(of_row)) + np.repeat(starts - (counts.cumsum() - counts), counts), of_row


def _indicators(attributes: Sequence[Sequence[str]]) -> tuple[sparse.csr_array, Floats]:
    """(V, A) indicators of attributes, and (V,) their number per item."""
    sets = [sorted(set(names)) for names in attributes]
    columns = {name: index for index, name in enumerate(sorted({name for names in sets for name in names}))}
    counts = np.array([len(names) for names in sets], np.int64)
    indices = np.array([columns[name] for names in sets for name in names], np.int64)
    offsets = np.concatenate([[0], counts.cumsum()])
    entries = (np.ones(len(indices), np.float32), indices, offsets)
    return sparse.csr_array(entries, shape=(len(sets), max(1, len(columns)))), counts.astype(np.float32)


class FeatureReward:
    """One feature as a reward, such as item-kNN (`knn_history`); each history's user is left out of all counts."""

    def __init__(self, features: Features, name: str) -> None:
        self.features, self.column = features, FEATURES.index(name)

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        """Score (B, N) items, see `Reward.score`."""
        if not items.numel():
            return torch.zeros(items.shape, device=items.device)
        return torch.from_numpy(self.features.of(histories, items)[:, :, self.column].copy()).to(items.device)
