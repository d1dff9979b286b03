"""Sources of items besides the beam; each scores the whole catalogue after a history.

    popularity   log((n_i + 1) / (n + V))    n_i training interactions of item i, n of all
    item-kNN     Σ_t γ^(T - t) s(x_t, i)     s(i, j) = |U_i ∩ U_j| / √(|U_i| |U_j|),  k nearest of each
    successors   Σ_t γ^(T - t) f(x_t, i)     f(j, i) = n(j, i) / √(1 + Σ_j n(j, i)),  k largest of each
    ranker       h(x) · e_i + b_i            see `adagrpo.rewards.sequential`
    recent       log of a share of Σ 2^(-a / h)   a the age of an interaction, h a twentieth of the training days
    clicks       log((c_i + m p) / (n_i + m))     c_i clicks of n_i impressions, p of all
    together     as item-kNN, U_i the baskets with item i

`U_i` are the training users with item i; n(j, i) sums 1/d over i at d ≤ `WITHIN` positions after j. Where baskets are
known, T - t counts baskets, each weighing one in all, and d is 1 to the next. Sources: Sarwar et al. (WWW 2001) for the
cosine, session-based kNN (Ludewig and Jannach 2018) for the decay.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor
from torch.nn import functional

from adagrpo.data.pairs import common_users_of, successions, successions_of, users_of_items
from adagrpo.data.sequences import basket_starts
from adagrpo.networks import linear_weights_in, mixed_precision, precision_used
from adagrpo.rewards.sequential import SequentialRanker
from adagrpo.sparse_rows import add_rows, with_largest
from adagrpo.types import Histories, Past, Ragged

DECAY = 0.7  # γ
NEIGHBOURS = 1000  # k
MOST_KEPT = 2**27  # similarities of all items together, 1.6 GB
WITHIN = 3  # positions
REACH = 16  # baskets back; older ones weigh less than .005
HALF_LIFE = 0.05  # of an interaction's weight, as a share of the training days
PRIOR_VIEWS = 50.0  # m
FLOOR = 1e-3  # added to a similarity before its logarithm: an item that no item of the history is near to has log 0.001
SUCCESSOR_FLOOR = 1e-2  # the same of a share of successors


class CandidateSource(ABC):
    """Scores of the whole catalogue after a history."""

    floor: float | None = None  # added to scores before their logarithm, the feature; None: the scores are it

    @abstractmethod
    def scores(self, histories: Histories) -> Tensor:
        """Return (B, V) float32 scores, -inf for items that the source never lists."""

    def scores_at(self, histories: Histories, items: Tensor) -> Tensor:
        """Return (B, N) scores of items; unspecified at -1."""
        return self.scores(histories).gather(1, items.clamp(min=0))

    def feature(self, scores: Tensor) -> Tensor:
        """Return (B, N) finite features of a fused list from scores."""
        return scores if self.floor is None else (scores.clamp(min=0.0) + self.floor).log()


class Shares(CandidateSource):
    """The same score of each item, whatever the history."""

    def __init__(self, shares: NDArray[np.float64]) -> None:  # (V,) above 0
        self._scores = torch.from_numpy(np.log(shares).astype(np.float32))

    def scores(self, histories: Histories) -> Tensor:
        """Return (B, V) logarithms."""
        return self._scores.to(histories.items.device).expand(len(histories.lengths), -1)


class NearestItems(CandidateSource):
    """Items near those of the history, recent ones above all."""

    def __init__(self, near: sparse.csr_array, floor: float = FLOOR) -> None:
        """`near` holds similarities (V, V); `floor` is added before the logarithm."""
        self.near, self.floor, self._nearest = near, floor, near.indices.astype(np.int64)

    def scores(self, histories: Histories) -> Tensor:
        """Return (B, V) sums over the history; -inf where no item is near."""
        if histories.past is not None and histories.past.grouped:
            return self._of_baskets(histories.past)
        items, lengths = histories.items.tolist(), histories.lengths.tolist()
        weights = (DECAY ** np.arange(max(lengths, default=1))).astype(np.float32)
        dense = np.zeros((len(lengths), self.near.shape[0]), np.float32)
        for row, seen, length in zip(dense, items, lengths, strict=True):
            add_rows(row, self.near, self._nearest, seen[:length], weights[:length][::-1])
        dense[dense == 0] = -np.inf
        return torch.from_numpy(dense).to(histories.items.device)

    def _of_baskets(self, past: Past) -> Tensor:
        items, ago = past.items.cpu().numpy(), past.baskets.cpu().numpy()
        row, column = np.nonzero((items >= 0) & (ago < REACH))
        owner = row * REACH + ago[row, column]
        weights = DECAY ** ago[row, column] / np.bincount(owner, minlength=REACH * len(items))[owner]
        entries = (weights.astype(np.float32), (row, items[row, column]))
        held = sparse.coo_array(entries, shape=(len(items), self.near.shape[0])).tocsr()
        dense = np.asarray((held @ self.near).todense(), np.float32)
        dense[dense == 0] = -np.inf
        return torch.from_numpy(dense).to(past.items.device)


class RankerScores(CandidateSource):
    """The sequential ranker."""

    def __init__(self, ranker: SequentialRanker) -> None:
        in_bfloat16 = precision_used(ranker) == "bfloat16"
        self.ranker = linear_weights_in(ranker.eval(), torch.bfloat16) if in_bfloat16 else ranker.eval()
        tables = ranker.items.weight.detach(), ranker.bias.weight.detach().squeeze(-1)
        self._vectors, self._bias = (table.bfloat16() for table in tables) if in_bfloat16 else tables

    @torch.no_grad()
    def scores(self, histories: Histories) -> Tensor:
        """Return (B, V) logits."""
        with mixed_precision(self.ranker):
            states = self.ranker.last_states(histories)
            return functional.linear(states, self._vectors, self._bias).float()


class StoredLists(CandidateSource):
    """Lists that a shop has already, by user, best first; a user without a list, or an unknown one, gets none."""

    def __init__(self, lists: Mapping[str, Sequence[int]], num_items: int) -> None:
        """`lists` are by the text of a user's id."""
        self.lists, self.num_items = lists, num_items

    def scores(self, histories: Histories) -> Tensor:
        """Return (B, V) scores: 0 for the first item of the list, -1 for the second; -inf for others."""
        users = [None] * len(histories.lengths) if histories.asking is None else histories.asking.users
        scores = torch.full((len(users), self.num_items), -torch.inf)
        for row, user in enumerate(users):
            items = torch.tensor(self.lists.get(str(user), ()), dtype=torch.int64)
            scores[row, items] = -torch.arange(len(items), dtype=torch.float32)
        return scores.to(histories.items.device)


def best_of(
    scores: Tensor,  # (B, V)
    closed: Tensor,  # (B, V) bool
    width: int,
) -> tuple[Tensor, Tensor]:  # (B, W) each
    """Return the (B, W) best items and scores, padded with -1 and -inf; `W` is at most `V`.

    >>> best_of(torch.tensor([[0.5, 2.0, 1.0]]), torch.tensor([[False, True, False]]), 3)[0].tolist()
    [[2, 0, -1]]
    """
    best = scores.masked_fill(closed, -torch.inf).topk(min(width, scores.shape[1]))
    return best.indices.masked_fill(best.values == -torch.inf, -1), best.values


def kept_per_item(num_items: int) -> int:
    """Return how many neighbours an item keeps: `NEIGHBOURS`, or fewer, for at most `MOST_KEPT` in all.

    >>> kept_per_item(12_101), kept_per_item(1_000_000)
    (1000, 134)
    """
    return min(NEIGHBOURS, max(1, MOST_KEPT // max(1, num_items)))


def similarities(training: Ragged, num_items: int, neighbours: int | None = None) -> sparse.csr_array:
    """Return (V, V) float32 cosines of the items' users, the `neighbours` largest per row, no diagonal."""
    held = users_of_items(training, num_items)
    norms = np.sqrt(np.bincount(held.indices, minlength=num_items).astype(np.float32))

    def cosines() -> Iterator[sparse.csr_array]:
        for first, together in common_users_of(held):
            of_rows = np.repeat(norms[first : first + together.shape[0]], np.diff(together.indptr))
            together.data /= of_rows * norms[together.indices]
            yield together

    return nearest_of(cosines(), num_items, neighbours)


def successors(training: Ragged, num_items: int, neighbours: int | None = None) -> sparse.csr_array:
    """Return the (V, V) float32 matrix `f`, the `neighbours` largest per row, no diagonal."""
    grouped = training.baskets is not None
    counts = [successions(training, num_items)] if grouped else [*successions_of(training, num_items, WITHIN)]
    followed = np.ones(num_items)
    for part in counts:
        followed += np.bincount(part.indices, part.data, num_items)
    popular = np.sqrt(followed).astype(np.float32)
    counts.reverse()

    def shares() -> Iterator[sparse.csr_array]:
        while counts:
            part = counts.pop()  # so that its memory is free when it is used
            part.data /= popular[part.indices]
            yield part

    return nearest_of(shares(), num_items, neighbours)


def nearest_of(blocks: Iterable[sparse.csr_array], num_items: int, neighbours: int | None = None) -> sparse.csr_array:
    """Stack blocks of rows to (V, V): the `neighbours` largest entries of each, no diagonal. Changes the blocks."""
    neighbours = kept_per_item(num_items) if neighbours is None else neighbours
    kept: list[sparse.csr_array] = []
    first = 0
    for block in blocks:
        rows = np.repeat(np.arange(first, first + block.shape[0], dtype=np.int32), np.diff(block.indptr))
        block.data[rows == block.indices] = 0.0
        kept.append(with_largest(block, neighbours))
        first += block.shape[0]
    none = sparse.csr_array((0, num_items), dtype=np.float32)
    return sparse.csr_array(sparse.vstack([none, *kept], format="csr"))


def together(training: Ragged, num_items: int) -> sparse.csr_array:
    """Return (V, V) float32 cosines of the items' baskets; see `similarities`."""
    begins = np.unique(basket_starts(training))
    return similarities(Ragged(training.values, np.append(begins, len(training.values))), num_items)


def popular_shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (V,) shares of interactions, smoothed by one."""
    return np.asarray((counts + 1) / (counts.sum() + len(counts)))


def recent_shares(
    items: NDArray[np.int64],  # (total,)
    ages: NDArray[np.float64],  # (total,) in any unit, at least 0
    num_items: int,
) -> NDArray[np.float64]:
    """Return (V,) shares of interactions that halve every `HALF_LIFE` of the time, smoothed by one.

    >>> recent_shares(np.array([0, 1]), np.array([20.0, 0.0]), 2).round(3)
    array([0.333, 0.667])
    """
    half = HALF_LIFE * float(ages.max(initial=0.0)) or 1.0  # where all are of one time, all count alike
    weights = np.bincount(items, 0.5 ** (ages / half), num_items)
    return np.asarray((weights + 1.0) / (weights.sum() + num_items))


def click_through(
    items: NDArray[np.int64],  # (total,)
    clicked: NDArray[np.bool_],  # (total,)
    num_items: int,
) -> NDArray[np.float64]:
    """Return (V,) smoothed click-through rates."""
    shown, clicks = np.bincount(items, minlength=num_items), np.bincount(items[clicked], minlength=num_items)
    mean = (clicks.sum() + 1.0) / (shown.sum() + 2.0)
    return np.asarray((clicks + PRIOR_VIEWS * mean) / (shown + PRIOR_VIEWS))
