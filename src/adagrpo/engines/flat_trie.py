"""The token sequences of a catalogue as flat arrays, and logits held to them: what every engine's processor shares.

    nodes    prefixes of items, breadth first, those of one length in lexicographic order; 0 is the empty one
    edges    (node, token), sorted; edge e leads to node e + 1, because children are numbered in the same order
    first    (N + 1,) int64, the first edge of each node
    token    (N - 1,) int64, the token of each edge
    leaf     (V,) int64, the last node of each item, -1 of one that is never written

A token may follow a prefix if an edge says so. After a whole item, after what is no prefix, and where all that may
follow is excluded, the end is the only token; a row of logits is never -inf throughout.

There is no state in it: where a request stands is read from the tokens it has written, each step anew, so that a
request that moves, waits or is computed again needs no care. A walk is one binary search a level for all rows at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor

__all__ = ["TRIE_FILE", "FlatTrie", "flatten", "opened"]

TRIE_FILE = "catalog_trie.safetensors"


def flatten(
    sequences: NDArray[np.int64],  # (V, L)
    written: NDArray[np.bool_],  # (V,)
) -> dict[str, NDArray[np.int64]]:
    """The arrays of the module's text.

    Args:
        sequences: the tokens of each item, distinct.
        written: which items may be written.

    Raises:
        ValueError: two items that may be written have the same tokens.
    """
    rows = np.flatnonzero(written)
    order = rows[np.lexsort(sequences[rows].T[::-1])]
    ordered = sequences[order]
    parents, first, token = np.zeros(len(order), np.int64), [np.zeros(1, np.int64)], list[NDArray[np.int64]]()
    edges, nodes = 0, 1  # before this level; nodes of the level above
    for level in range(sequences.shape[1]):
        new = np.ones(len(order), bool)
        new[1:] = (parents[1:] != parents[:-1]) | (ordered[1:, level] != ordered[:-1, level])
        token.append(ordered[new, level])
        counts = np.bincount(parents[new], minlength=nodes)
        first.append(edges + counts.cumsum())
        edges, nodes = edges + int(new.sum()), int(new.sum())
        parents = new.cumsum() - 1
    if nodes != len(order):
        raise ValueError("two items have the same tokens")
    first.append(np.full(nodes, edges))  # of the leaves
    leaf = np.full(len(sequences), -1)
    leaf[order] = edges - nodes + 1 + np.arange(nodes)
    return {"first": np.concatenate(first), "token": np.concatenate(token), "leaf": leaf}


class FlatTrie:
    """The catalogue of an exported folder, on one device."""

    def __init__(
        self,
        arrays: Mapping[str, NDArray[np.int64]],
        item_ids: Sequence[Any],
        levels: int,
        end_token: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """Take the arrays of `flatten`.

        Args:
            arrays: `first`, `token` and `leaf`.
            item_ids: (V,) of the input data.
            levels: `L`, tokens of an item.
            end_token: what follows a whole item.
            device: where logits will be.
        """
        first, token = (torch.from_numpy(arrays[name]).to(device) for name in ("first", "token"))
        counts = first.diff()
        self.levels, self.end_token, self.device = levels, end_token, torch.device(device)
        self.first, self.token, self.counts = first, token, counts
        self.base = int(token.max()) + 1 if len(token) else 1
        parents = torch.repeat_interleave(counts)
        self.keys = parents * self.base + token  # (E,) sorted
        self.most = int(counts.max()) if len(counts) else 0
        self.size = len(counts)
        self.leaves = dict(zip(item_ids, arrays["leaf"].tolist(), strict=True))
        self._parents, self._counts = parents.tolist(), counts.tolist()

    def excluding(self, items: Iterable[Any]) -> list[int]:
        """The nodes that are not entered if these items are not to be written, those that only they complete included.

        Items that are not in the catalogue are written by nobody, and so need no node.
        """
        closed = {leaf for item in items if (leaf := self.leaves.get(item, -1)) > 0}
        last = closed
        while last:
            below: dict[int, int] = {}
            for node in last:
                if node > 0:
                    parent = self._parents[node - 1]
                    below[parent] = below.get(parent, 0) + 1
            last = {node for node, count in below.items() if count == self._counts[node]}
            closed = closed | last
        return sorted(closed)

    def walk(
        self,
        written: Tensor,  # (R, T) int64; what is behind a row's length is not read
        lengths: Tensor,  # (R,) int64
    ) -> Tensor:  # (R,) int64
        """The node that each row's tokens lead to, -1 where they are no prefix of an item."""
        nodes = torch.zeros_like(lengths)
        for level in range(written.shape[1]):
            tokens = written[:, level]
            keys = nodes * self.base + tokens
            edges = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
            known = (nodes >= 0) & (tokens >= 0) & (tokens < self.base) & (self.keys[edges] == keys)
            nodes = torch.where(level < lengths, torch.where(known, edges + 1, -1), nodes)
        return nodes

    def walk_lists(self, written: Sequence[Sequence[int]]) -> Tensor:  # (R,)
        """As `walk`, of lists."""
        rows = [[*tokens[: self.levels]] for tokens in written]
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        padded = [row + [-1] * (self.levels - len(row)) for row in rows]
        return self.walk(torch.tensor(padded, dtype=torch.int64, device=self.device), lengths)

    def hold(
        self,
        logits: Tensor,  # (R, vocabulary)
        nodes: Tensor,  # (R,) int64
        owners: Tensor | None = None,  # (R,) int64
        closed: Tensor | None = None,  # (X,) int64, sorted
    ) -> Tensor:  # (R, vocabulary)
        """The logits with -inf at every token that may not follow; those that may are left as they are.

        Args:
            logits: one row a sequence.
            nodes: of `walk`.
            owners: whose exclusions hold in each row.
            closed: owner * N + node, of each owner's `excluding`.
        """
        known = nodes.clamp(min=0)
        counts = self.counts[known].masked_fill(nodes < 0, 0)
        places = torch.arange(max(self.most, 1), device=logits.device)
        edges = (self.first[known].unsqueeze(1) + places).clamp(max=len(self.token) - 1)  # (R, most)
        allowed = places < counts.unsqueeze(1)
        if owners is not None and closed is not None and len(closed):
            keys = owners.unsqueeze(1) * self.size + edges + 1
            found = torch.searchsorted(closed, keys).clamp(max=len(closed) - 1)
            allowed &= closed[found] != keys
        only_end = ~allowed.any(1, keepdim=True)
        tokens = torch.where(allowed, self.token[edges], self.end_token)
        kept = logits.gather(1, tokens).masked_fill(~(allowed | only_end), -torch.inf)
        # the end stands in several places of a row: the largest of them counts, whatever the order of writing
        return torch.full_like(logits, -torch.inf).scatter_reduce_(1, tokens, kept, "amax")

    def closed(self, exclusions: Mapping[int, Sequence[int]]) -> Tensor:
        """For `hold`: each owner's excluded nodes in one sorted row of keys."""
        keys = [owner * self.size + node for owner, nodes in exclusions.items() for node in nodes]
        return torch.tensor(sorted(keys), dtype=torch.int64, device=self.device)


@lru_cache(maxsize=4)
def opened(folder: Path | None = None, device: str = "cpu") -> FlatTrie:
    """The catalogue of an exported folder; without one, of the folder that this package lies in.

    Raises:
        FileNotFoundError: no export is there.
    """
    folder = folder or Path(__file__).resolve().parents[1]
    tokens = json.loads((folder / "semantic_ids.json").read_text(encoding="utf-8"))
    catalog = json.loads((folder / "catalog.json").read_text(encoding="utf-8"))
    arrays = load_file(folder / TRIE_FILE)
    return FlatTrie(arrays, catalog["item_ids"], len(tokens["level_sizes"]), tokens["outside_token"], device)
