"""Sums of the hybrid policy's item head over the tree of the catalogue's codes.

    q(c_l | c_<l) = m(c_<l c_l) / m(c_<l)        m(prefix) the sum of exp z_i over the items below

Factors common to a prefix cancel, so `shares_below` needs only the items below it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from adagrpo.semantic_ids.trie import Branches, Trie

_BLOCK = 2**18  # logits per block, to stay in the processor's cache
_TINY = 1e-30
_SMALL = 1e-18  # the inverse square of a mass from here on is far from the largest float32
_GATHERED = 2**23  # numbers of the vectors of leaves that are gathered at a time

VectorsOf = Callable[[Tensor], tuple[Tensor, Tensor]]  # (T,) leaves to vectors (T, D) and biases (T,)


class HeadScores(NamedTuple):
    """Scores of the head for `N` samples."""

    queries: Tensor  # (N, D)
    masses: tuple[Tensor, ...]  # of levels 0 and on, (N, 1 + n_l), up to a factor a sample; 0 before the first node

    def of(self, rows: Tensor | slice) -> HeadScores:
        """Return the scores of some samples."""
        return HeadScores(self.queries[rows], tuple(mass[rows] for mass in self.masses))


class HeadTable:
    """Vectors of a frozen policy, cached in the precision last used."""

    def __init__(self, vectors: Tensor, bias: Tensor) -> None:  # vectors (V, D) float32, bias (V, 1) float32
        self._vectors, self.bias = vectors, bias
        self._low: Tensor | None = None

    def vectors(self) -> Tensor:
        """Return (V, D) vectors in the precision of autocast, if it is on."""
        device = self._vectors.device.type
        wanted = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        if wanted == self._vectors.dtype:
            return self._vectors
        if self._low is None or self._low.dtype != wanted:
            self._low = self._vectors.to(wanted)
        return self._low


class Leaves(NamedTuple):
    """All leaves below each of (B, W) nodes, ordered by node."""

    parents: Tensor  # (T,) int64, index of the node among the B * W
    leaves: Tensor  # (T,) int64
    counts: Tensor  # (B * W,) int64


# nodes (...) int64, -1 for a prefix that no item has
def leaves_below(trie: Trie, level: int, nodes: Tensor) -> Leaves:
    """Return the leaves below nodes of a level."""
    flat = nodes.flatten()
    known = flat.clamp(min=0)
    begin = trie.leaf_ranges[level].index_select(0, known)
    counts = (trie.leaf_ranges[level].index_select(0, known + 1) - begin).masked_fill_(flat < 0, 0)
    parents = torch.repeat_interleave(counts)
    before = counts.cumsum(0) - counts
    leaves = torch.arange(len(parents), device=nodes.device) + (begin - before).index_select(0, parents)
    return Leaves(parents, leaves, counts)


def leaf_logits(below: Leaves, queries: Tensor, vectors_of: VectorsOf) -> Tensor:  # queries (B, D) -> (T,) float32
    """Return the logit of each leaf for the sample of its node."""
    if not len(below.leaves):
        return queries.new_zeros(0, dtype=torch.float32)
    of_sample = below.counts.view(len(queries), -1).sum(1)
    starts, logits = of_sample.cumsum(0) - of_sample, []
    step = max(1, _GATHERED // (int(of_sample.max()) * queries.shape[1]))
    for first in range(0, len(queries), step):
        part = slice(first, first + step)
        # every sample is filled up to the same number of leaves, so that it is one product of small matrices
        column = torch.arange(int(of_sample[part].max()), device=queries.device)
        index = (starts[part].unsqueeze(1) + column).clamp_(max=len(below.leaves) - 1)  # (b, M)
        vectors, bias = vectors_of(below.leaves.index_select(0, index.flatten()))
        vectors = vectors.view(*index.shape, queries.shape[1])
        products = torch.bmm(vectors, queries[part].to(vectors.dtype).unsqueeze(-1)).squeeze(-1).float()
        logits.append((products + bias.view_as(products))[column < of_sample[part].unsqueeze(1)])
    return torch.cat(logits)


def shares_within(below: Leaves, logits: Tensor) -> Tensor:  # logits (T,) -> (T,)
    """Return the softmax of each leaf's logit among the leaves of its node."""
    highest = logits.new_full((len(below.counts),), -torch.inf)
    highest = highest.scatter_reduce(0, below.parents, logits.detach(), "amax")
    masses = (logits - highest.index_select(0, below.parents)).exp()
    totals = torch.zeros_like(highest).index_add(0, below.parents, masses)
    return masses / totals.index_select(0, below.parents)


def shares_below(
    trie: Trie,
    level: int,
    nodes: Tensor,  # (B, W)
    branches: Branches,  # of these nodes
    queries: Tensor,  # (B, D)
    vectors_of: VectorsOf,
) -> Tensor:  # (T,) of the branches
    """Return each child's share of its node's mass."""
    below = leaves_below(trie, level, nodes)
    shares = shares_within(below, leaf_logits(below, queries, vectors_of))
    if level + 1 == trie.num_levels:
        return shares
    ranges = trie.leaf_ranges[level + 1]
    counts = ranges.index_select(0, branches.nodes + 1) - ranges.index_select(0, branches.nodes)
    return shares.new_zeros(len(counts)).index_add(0, torch.repeat_interleave(counts), shares)


def crowded(trie: Trie, level: int) -> bool:
    """Return whether most codes lead to a node."""
    nodes, below = trie.node_counts[level : level + 2]
    return trie.tables[level].dim() == 2 and 2 * below >= nodes * trie.level_sizes[level]


# nodes (B, W), above (B, 1 + n_l), below (B, 1 + n_{l+1}) -> (B, W, K)
def shares_of_codes(trie: Trie, level: int, nodes: Tensor, above: Tensor, below: Tensor) -> Tensor:
    """Return each code's share of its node's mass, 0 where it leads to none."""
    known = nodes.clamp(min=0)
    mass = above.gather(1, known + 1).clamp(min=_TINY)
    # the gradient -1 / m² overflows below 5e-20; a power of two brings such an m up and changes no bit of the result
    scale = torch.where(mass < _SMALL, 2.0**60, 1.0)
    total = torch.where(nodes >= 0, 1 / (mass * scale) * scale, 0.0)
    children = trie.tables[level].index_select(0, known.flatten()).view(*nodes.shape, trie.level_sizes[level])
    first = below.shape[1] * torch.arange(len(nodes), device=nodes.device).view(-1, 1, 1) + 1
    masses = below.flatten().index_select(0, (children + first).flatten()).view_as(children)
    return masses * total.unsqueeze(-1)


# nodes (B, W); branches of these nodes; above (B, 1 + n_l); below (B, 1 + n_{l+1}) -> (T,) of the branches
def shares_of_branches(nodes: Tensor, branches: Branches, above: Tensor, below: Tensor) -> Tensor:
    """Return each child's share of its node's mass."""
    total = above.gather(1, nodes + 1).clamp(min=_TINY).flatten()  # (B * W,)
    first = below.shape[1] * torch.arange(len(nodes), device=nodes.device).repeat_interleave(nodes.shape[1]) + 1
    index = branches.nodes + first.index_select(0, branches.parents)
    return below.flatten().index_select(0, index) / total.index_select(0, branches.parents)


# vectors (V, D), states (N, D), bias (V, 1) -> (N, 1 + V) float32
def exponentials(vectors: Tensor, states: Tensor, bias: Tensor) -> Tensor:
    """Return exponentials of logits minus their maximum, after a leading 0."""
    count, of_rows = len(states), bias.view(1, -1)
    padded = torch.empty(count, 1 + len(vectors), dtype=torch.float32, device=states.device)
    padded[:, 0] = 0
    masses = padded[:, 1:]
    size = max(1, _BLOCK // max(1, count))
    blocks = [slice(first, first + size) for first in range(0, len(vectors), size)]
    highest = []
    for block in blocks:
        masses[:, block].copy_(functional.linear(states, vectors[block])).add_(of_rows[:, block])
        highest.append(masses[:, block].amax(1, keepdim=True))
    top = torch.cat(highest, dim=1).amax(1, keepdim=True)
    for block in blocks:
        masses[:, block].sub_(top).exp_()
    return padded


# vectors (V, D), states (N, D), bias (V, 1), first (n + 1,) int64 -> (N, 1 + n) float32
def sums_by_node(vectors: Tensor, states: Tensor, bias: Tensor, first: Tensor) -> Tensor:
    """Sum `exponentials` over items `first[j]` to `first[j + 1]` without a (N, V) matrix."""
    count, nodes = len(states), len(first) - 1
    sums = torch.zeros(1 + nodes, count, dtype=torch.float32, device=states.device)
    steps = torch.arange(0, len(vectors), max(1, 2 * _BLOCK // max(1, count)), device=first.device)
    starts = torch.unique(torch.searchsorted(first[:-1].contiguous(), steps))
    bounds = [*starts[starts < nodes].tolist(), nodes]  # of blocks, each of whole nodes
    rows = first[torch.tensor(bounds, device=first.device)].tolist()
    index = torch.arange(max(b - a for a, b in pairwise(rows)), device=states.device)
    highest = []
    for (start, end), (begin, stop) in zip(pairwise(bounds), pairwise(rows), strict=True):
        logits = functional.linear(vectors[begin:stop], states).float().add_(bias[begin:stop])
        highest.append(logits.amax(0))
        logits.sub_(highest[-1]).exp_()
        offsets = first[start:end] - begin
        sums[1 + start : 1 + end] = functional.embedding_bag(index[: stop - begin], logits, offsets, mode="sum")
    top = torch.stack(highest).amax(0)
    for (start, end), high in zip(pairwise(bounds), highest, strict=True):
        sums[1 + start : 1 + end].mul_((high - top).exp())
    return sums.t().contiguous()


# masses (N, 1 + n_l), 0 before the first node
def upwards(trie: Trie, masses: Tensor, level: int) -> tuple[Tensor, ...]:
    """Return the masses (N, 1 + n) of levels 0 to `level`."""
    levels, below = [masses], masses[:, 1:].t().contiguous()  # (n, N): a node's masses are added up side by side
    for first in reversed(trie.first[:level]):
        if below.shape[1] == 0:  # on which several threads of `embedding_bag` fail
            below = below.new_zeros(len(first) - 1, 0)
        elif below.shape[1] == 1:  # of which bags make three times as much work
            below = torch.segment_reduce(below, "sum", offsets=first, axis=0)
        else:
            index = torch.arange(len(below), device=below.device)
            below = functional.embedding_bag(index, below, first[:-1], mode="sum")
        levels.append(functional.pad(below.t(), (1, 0)))
    return tuple(reversed(levels))
