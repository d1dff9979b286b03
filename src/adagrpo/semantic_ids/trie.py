"""Prefix tree of the catalogue's codes: which codes may follow a prefix, and which item a full sequence names.

    child(l, n, k) = the node of level l + 1 whose prefix is prefix(n) followed by code k, or -1

Nodes of a level are its distinct prefixes in lexicographic order, so the children and the leaves of a node are
contiguous. An unknown prefix is node -1, which allows nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


class Branches(NamedTuple):
    """All children of `N` nodes, ordered by parent, then code."""

    counts: Tensor  # (N,) int64, how many children each node has
    parents: Tensor  # (T,) int64, index of the parent among the N
    codes: Tensor  # (T,) int64, the code that leads there
    nodes: Tensor  # (T,) int64, the node of the level below


@dataclass(frozen=True, eq=False)
class Eligible:
    """Items that samples may reach; built by `Trie.eligible`."""

    items: Tensor  # (V,) bool
    below: tuple[Tensor, ...]  # per level 0 .. L, (max(n_l, 1),) int32, how many of them are below each node
    count: int  # how many there are

    @property
    def memory(self) -> int:
        """Size in bytes."""
        return sum(tensor.nbytes for tensor in (self.items, *self.below))


class Excluded(NamedTuple):
    """Leaves that each of `B` samples may not reach; built by `Trie.excluding`."""

    keys: Tensor  # (X,) int64, sorted and distinct: sample * n_L + leaf, of eligible leaves
    starts: tuple[int, ...] = (0,)  # the first sample of each run that has one mask
    masks: tuple[Eligible | None, ...] = (None,)  # of the runs; None: the catalogue


@dataclass(frozen=True, eq=False)
class Trie:
    """Prefix tree of `V` distinct code sequences; build it with `Trie.build`.

    >>> trie = Trie.build(torch.tensor([[0, 1], [2, 0], [0, 0]]), (3, 2))
    >>> trie.allowed(0, torch.tensor([0, -1])).tolist()
    [[True, False, True], [False, False, False]]
    >>> trie.child(0, torch.tensor([0, 0]), torch.tensor([2, 1])).tolist()
    [1, -1]
    >>> trie.lookup(torch.tensor([[0, 0], [2, 1]])).tolist()
    [2, -1]
    """

    level_sizes: tuple[int, ...]  # `(K_1 .. K_L)`, number of codes
    node_counts: tuple[int, ...]  # `(n_0 .. n_L)`, number of distinct prefixes; `n_0` is 1
    # per level, the (n_l, K_l) int32 child table (one row of -1 if there are no nodes), or (n_{l+1},) int64 sorted keys
    # `node * K_l + code`, whose rank is the child
    tables: tuple[Tensor, ...]
    items: Tensor  # (n_L,) int64, item of each leaf
    # per level, (max(n_l, 1) + 1,) int64: the first child of each node, then how many there are
    first: tuple[Tensor, ...]
    codes: tuple[Tensor, ...]  # per level, (n_{l+1},) int64, the last code of each child

    # codes (V, L) int64
    @classmethod
    def build(cls, codes: Tensor, level_sizes: tuple[int, ...], *, dense_limit: int = 2**26) -> Trie:
        """Build the tree of a catalogue, with sorted keys for tables of more than `dense_limit` entries.

        ValueError for other shapes, codes outside `0 .. K_l - 1`, or rows that are not distinct.
        """
        sizes = torch.tensor(level_sizes, dtype=torch.int64, device=codes.device)
        if codes.dim() != 2 or codes.shape[1] != len(level_sizes) or not level_sizes:
            raise ValueError(
                f"codes has shape {tuple(codes.shape)}, level_sizes {level_sizes}: expected (V, L) and L >= 1"
            )
        if codes.dtype != torch.int64:
            raise ValueError(f"codes is {codes.dtype}, expected torch.int64")
        if bool(((codes < 0) | (codes >= sizes)).any()):
            raise ValueError(f"codes holds a code outside 0 .. K_l - 1 for level_sizes {level_sizes}")
        nodes = torch.zeros(len(codes), dtype=torch.int64, device=codes.device)
        counts, tables, first, last = [1], list[Tensor](), list[Tensor](), list[Tensor]()
        for level, size in enumerate(level_sizes):
            # `unique` sorts, so the rank of a key continues the lexicographic order of the prefixes.
            keys, nodes = torch.unique(nodes * size + codes[:, level], return_inverse=True)
            if counts[-1] * size <= dense_limit:
                table = torch.full((max(counts[-1], 1) * size,), -1, dtype=torch.int32, device=keys.device)
                table[keys] = torch.arange(len(keys), dtype=torch.int32, device=keys.device)
                tables.append(table.view(-1, size))
            else:
                tables.append(keys)
            first.append(torch.searchsorted(keys, size * torch.arange(max(1, counts[-1]) + 1, device=keys.device)))
            last.append(keys % size)
            counts.append(len(keys))
        if counts[-1] != len(codes):
            raise ValueError(f"codes has {len(codes)} rows of which {counts[-1]} are distinct: rows must be distinct")
        items = torch.argsort(nodes)
        return cls(tuple(level_sizes), tuple(counts), tuple(tables), items, tuple(first), tuple(last))

    def named(self, items: Tensor) -> Trie:  # (n_L,) int64
        """Return the same tree with item `i` renamed to `items[i]`."""
        return replace(self, items=items[self.items])

    @property
    def num_levels(self) -> int:
        """`L`."""
        return len(self.level_sizes)

    def to(self, device: torch.device | str) -> Trie:
        """Return the tree on `device`."""
        return Trie(
            self.level_sizes,
            self.node_counts,
            tuple(table.to(device) for table in self.tables),
            self.items.to(device),
            tuple(child.to(device) for child in self.first),
            tuple(code.to(device) for code in self.codes),
        )

    def allowed(self, level: int, nodes: Tensor) -> Tensor:  # nodes (...) int64
        """Return (..., K_level) bool, which codes may follow nodes of a level; none after node -1."""
        table = self.tables[level]
        if table.dim() == 2:
            return (table[nodes.clamp(min=0)] >= 0) & (nodes >= 0).unsqueeze(-1)
        every_code = torch.arange(self.level_sizes[level], device=nodes.device)
        return self.child(level, nodes.unsqueeze(-1), every_code) >= 0

    def child(self, level: int, nodes: Tensor, codes: Tensor) -> Tensor:  # nodes (...) int64, codes (...) int64
        """Return (...) int64 nodes of the next level, -1 where there is none."""
        size = self.level_sizes[level]
        table = self.tables[level]
        known = (nodes >= 0) & (codes >= 0) & (codes < size)
        if table.dim() == 2:
            children = table[nodes.clamp(min=0), codes.clamp(0, size - 1)].to(torch.int64)
            return torch.where(known, children, -1)
        if len(table) == 0:
            return torch.full_like(known, -1, dtype=torch.int64)
        # Without the -1, a code out of range would fall on a neighbouring node's key.
        wanted = torch.where(known, nodes * size + codes, -1).contiguous()
        rank = torch.searchsorted(table, wanted).clamp(max=len(table) - 1)
        return torch.where(table[rank] == wanted, rank, -1)

    def branches(self, level: int, nodes: Tensor) -> Branches:  # nodes (...) int64
        """List the children of each node: the sparse form of `allowed` and `child`."""
        index, (sizes, ends) = nodes.flatten() + 1, self._children[level]
        counts = sizes.index_select(0, index)  # on a CPU three times as fast as indexing
        parents = torch.repeat_interleave(counts)
        # children are contiguous: count up to the parent's last one
        shift = ends.index_select(0, index).sub_(counts.cumsum(0))
        children = torch.arange(len(parents), device=nodes.device) + shift.index_select(0, parents)
        return Branches(counts, parents, self.codes[level].index_select(0, children), children)

    @cached_property
    def _children(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Per level, how many children each node has and where they end, both behind a 0 for node -1."""
        nothing = self.items.new_zeros(1)
        return tuple((torch.cat([nothing, first.diff()]), torch.cat([nothing, first[1:]])) for first in self.first)

    @cached_property
    def leaf_ranges(self) -> tuple[Tensor, ...]:
        """Per level `0 .. L`, (max(n_l, 1) + 1,) int64: first leaf of each node, then the number of leaves."""
        leaves = self.node_counts[-1]
        ranges = [torch.arange(max(1, leaves) + 1, device=self.items.device).clamp(max=leaves)]
        for first in reversed(self.first):
            ranges.append(ranges[-1].index_select(0, first))
        return tuple(reversed(ranges))

    @cached_property
    def leaf_of(self) -> Tensor:
        """(V' + 1,) int64, leaf of each item up to the last with one, -1 for none, and a final -1."""
        leaves = self.items.new_full((int(self.items.max()) + 2 if len(self.items) else 1,), -1)
        leaves[self.items] = torch.arange(len(self.items), device=self.items.device)
        return leaves

    def holds(self, items: Tensor) -> int:  # (N,) int64
        """Return how many of the given items are in the tree.

        >>> trie = Trie.build(torch.tensor([[0, 1], [2, 0]]), (3, 2)).named(torch.tensor([0, 2]))
        >>> trie.holds(torch.tensor([1, 2, 3]))
        1
        """
        leaves = self.leaf_of[items.to(self.items.device).clamp(max=len(self.leaf_of) - 1)]
        return int((leaves >= 0).sum())

    def eligible(self, items: Tensor) -> Eligible:  # (V,) bool
        """Count the eligible items below each node, once for all searches that share the mask."""
        least = len(self.leaf_of) - 1
        if items.dim() != 1 or len(items) < least or items.dtype != torch.bool:
            raise ValueError(f"items is {items.dtype} of {tuple(items.shape)}, expected bool of {(least,)} or more")
        before = torch.nn.functional.pad(items[self.items].cumsum(0, dtype=torch.int32), (1, 0))
        ends = [before.index_select(0, of_level) for of_level in self.leaf_ranges]
        return Eligible(items, tuple(end[1:] - end[:-1] for end in ends), int(before[-1]))

    def excluding(
        self,
        items: Tensor,  # (B, X) int64, -1 and items outside the tree are ignored
        eligible: Sequence[Eligible | None] | None = None,  # of each sample; those that share one should be adjacent
    ) -> Excluded:
        """Collect the items that each of `B` samples may not reach, for `closed`."""
        masks = list(eligible or [None])
        starts = [row for row, mask in enumerate(masks) if row == 0 or mask is not masks[row - 1]]
        samples = torch.arange(len(items), device=items.device).unsqueeze(1) * self.node_counts[-1]
        # -1 and items beyond the last one with a leaf both hit the final -1
        leaves = self.leaf_of[items.clamp(max=len(self.leaf_of) - 1)]
        real = leaves >= 0
        for start, end in zip(starts, [*starts[1:], len(items)], strict=True):
            mask = masks[start]
            if mask is not None:  # items outside would be counted twice; beyond its end none has a leaf
                real[start:end] &= mask.items[items[start:end].clamp(0, len(mask.items) - 1)]
        return Excluded(torch.unique((samples + leaves)[real]), tuple(starts), tuple(masks[start] for start in starts))

    def closed(
        self,
        level: int,  # `0 .. L`
        nodes: Tensor,  # (...) int64, of that level
        samples: Tensor,  # (...) int64, ascending, broadcast against `nodes`: rows in the items of `excluding`
        excluded: Excluded,  # from `excluding`
    ) -> Tensor:
        """Return (...) bool, whether no item below a node may be reached by its sample; True at node -1."""
        shape = (nodes + samples).shape
        nodes, samples = nodes.expand(shape), samples.expand(shape)
        known, leaves = nodes.clamp(min=0), self.leaf_ranges[level]
        flat, rows = known.flatten(), samples.flatten()
        # of each run of samples that share a mask, how many eligible leaves are below each node
        bounds = [0, *torch.searchsorted(rows, rows.new_tensor(excluded.starts[1:])).tolist(), len(rows)]
        counts = []
        for mask, start, end in zip(excluded.masks, bounds[:-1], bounds[1:], strict=True):
            part = flat[start:end]
            if mask is None:
                counts.append(leaves.index_select(0, part + 1) - leaves.index_select(0, part))
            else:
                counts.append(mask.below[level].index_select(0, part))
        left = (counts[0] if len(counts) == 1 else torch.cat(counts)).view(nodes.shape)
        if len(excluded.keys):
            before = samples * self.node_counts[-1]
            low, high = (
                torch.searchsorted(excluded.keys, (before + leaf).contiguous())
                for leaf in (leaves[known], leaves[known + 1])
            )
            left = left - (high - low)
        return (left == 0) | (nodes < 0)

    def leaf_items(self, nodes: Tensor) -> Tensor:  # (...) int64
        """Return (...) int64 items of level-L nodes; -1 stays -1."""
        if len(self.items) == 0:
            return torch.full_like(nodes, -1)
        return torch.where(nodes >= 0, self.items[nodes.clamp(min=0)], -1)

    def lookup(self, codes: Tensor) -> Tensor:  # (..., L) int64
        """Return (...) int64 items of full code sequences, -1 where they name none."""
        if codes.dim() == 0 or codes.shape[-1] != self.num_levels:
            raise ValueError(f"codes has shape {tuple(codes.shape)}, expected (..., {self.num_levels})")
        nodes = torch.zeros_like(codes[..., 0])
        for level in range(self.num_levels):
            nodes = self.child(level, nodes, codes[..., level])
        return self.leaf_items(nodes)
