"""The catalogue: the codes of each item, their storage and quality.

Rows `codes[item] = (c_1 .. c_L)` are distinct, so a sequence names at most one item. Collisions are resolved before by
a level that numbers the items of a sequence (TIGER, Rajput et al., NeurIPS 2023), or by moving items to free codes of
the last level (LC-Rec, Zheng et al., ICDE 2024, but closest pairs first). A delisted item keeps its row for histories,
but is not in the tree.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from adagrpo.errors import UserError
from adagrpo.readers.chunks import read_table
from adagrpo.readers.formats import columns_of
from adagrpo.semantic_ids.published import LARGEST_CODE, code_matrix
from adagrpo.semantic_ids.quantization import Quantization, assign_within
from adagrpo.semantic_ids.trie import Trie

_NUMBERS = 2**20  # differences between items and codes in memory at a time


def sequence_groups(codes: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # (V, L)
    """Return (V,) indices of code sequences in lexicographic order, and (N,) counts."""
    group = np.zeros(len(codes), dtype=np.int64)
    for column in codes.T.astype(np.int64) if len(codes) else ():
        above = column - column.min()
        # the rank so far and the next code in one number, below V times the codes of a level
        group = np.unique(group * (int(above.max()) + 1) + above, return_inverse=True)[1]
    return group, np.bincount(group)


def resolve_collisions(codes: NDArray[np.integer[Any]]) -> NDArray[np.int64]:  # (V, L)
    """Append a level that numbers the items of each sequence `0 .. c-1` in item order: (V, L + 1) distinct codes."""
    if codes.ndim != 2:
        raise ValueError(f"codes has shape {codes.shape}, expected (V, L)")
    group, counts = sequence_groups(codes)
    order = np.argsort(group, kind="stable")
    starts = np.cumsum(counts) - counts
    rank = np.empty(len(codes), dtype=np.int64)
    rank[order] = np.arange(len(codes)) - starts[group[order]]
    return np.column_stack([codes.astype(np.int64), rank])


def numbers_items(codes: NDArray[np.int64]) -> bool:  # (V, L)
    """Return whether the last level is one that `resolve_collisions` appended.

    >>> numbers_items(np.array([[5, 0], [0, 0], [5, 1]])), numbers_items(np.array([[5, 0], [0, 2], [5, 1]]))
    (True, False)
    """
    return codes.shape[1] > 1 and np.array_equal(resolve_collisions(codes[:, :-1]), codes)


def move_to_free_codes(quantization: Quantization, most: int = 0) -> NDArray[np.int64]:
    """Move items that collide to free codes of the last level: (V, L) int64 distinct rows.

    UserError if more items share a prefix than the last level has codes.

    The item nearest to its code stays; the others of a prefix take its free codes, closest pair first. Ties go to the
    lower item, then the lower code. If a prefix needs more codes, zero vectors are added, up to `most`.
    """
    codes = quantization.codes.copy()
    levels, size = codes.shape[1], len(quantization.codebooks[-1])
    left = quantization.residual(levels - 1).astype(np.float64)
    vectors = quantization.codebooks[-1].astype(np.float64)
    prefix, counts = sequence_groups(codes[:, :-1])
    if (added := min(int(counts.max(initial=0)), most) - size) > 0:
        vectors, size = np.pad(vectors, ((0, added), (0, 0))), size + added
    if counts.max(initial=0) > size:
        raise UserError(
            f"tokenizer.collisions: {counts.max()} items share their first {levels - 1} codes and level {levels} has "
            f"{size}; take more codes or levels, or collisions 'level', which alone tells items of equal vectors apart"
        )
    own = np.square(left - vectors[codes[:, -1]]).sum(axis=1)
    order = np.lexsort((own, codes[:, -1], prefix))  # stable: of equal distances the lower item is first
    sequence = np.column_stack([prefix, codes[:, -1]])[order]
    repeats = np.append(False, (sequence[1:] == sequence[:-1]).all(axis=1))
    ends = np.cumsum(counts)
    for shared in np.unique(prefix[order[repeats]]):
        of_prefix = slice(ends[shared] - counts[shared], ends[shared])
        moving = np.sort(order[of_prefix][repeats[of_prefix]])
        free = np.setdiff1d(np.arange(size), codes[order[of_prefix], -1])
        step = max(1, _NUMBERS // max(1, len(free) * vectors.shape[1]))
        gaps = [
            np.square(left[moving[first : first + step], None] - vectors[free]).sum(axis=2)
            for first in range(0, len(moving), step)
        ]
        codes[moving, -1] = free[assign_within(np.concatenate(gaps), np.ones(len(free), dtype=np.int64))]
    return codes


LISTED = "listed"


@dataclass(frozen=True, eq=False)
class Catalog:
    """Codes of `V` items; build it with `Catalog.from_codes`.

    >>> catalog = Catalog.from_codes(torch.tensor([[0, 1], [2, 0]]))
    >>> catalog.level_sizes, catalog.num_items, catalog.num_levels
    ((3, 2), 2, 2)
    >>> catalog.lookup(torch.tensor([[2, 0], [2, 1]])).tolist()
    [1, -1]
    """

    codes: Tensor  # (V, L) int64, distinct rows
    level_sizes: tuple[int, ...]  # `(K_1 .. K_L)`, number of codes of each level, used or not
    trie: Trie  # prefix tree of the listed items

    @classmethod
    def from_codes(
        cls,
        codes: Tensor | NDArray[np.integer[Any]],  # (V, L)
        level_sizes: Sequence[int] | None = None,  # `(K_1 .. K_L)`; None: the largest code of each level plus one
        listed: Tensor | NDArray[np.bool_] | None = None,  # (V,) False: not in the tree; None: all are
    ) -> Catalog:
        """Check codes and build their catalogue; UserError if two items share codes, or a code is out of range."""
        matrix = torch.as_tensor(codes)
        if matrix.dim() != 2 or matrix.shape[1] == 0 or matrix.is_floating_point():
            raise ValueError(f"codes is {matrix.dtype} {tuple(matrix.shape)}, expected integers (V, L) with L >= 1")
        matrix = matrix.to(torch.int64)
        values = matrix.cpu().numpy()
        largest = values.max(axis=0, initial=0)
        sizes = tuple(int(code) + 1 for code in largest) if level_sizes is None else tuple(map(int, level_sizes))
        if len(sizes) != matrix.shape[1]:
            raise ValueError(f"level_sizes has {len(sizes)} levels, codes {matrix.shape[1]}")
        last = [min(size - 1, LARGEST_CODE) for size in sizes]
        for item, level in np.argwhere((values < 0) | (values > np.asarray(last)))[:1]:
            found = f"item {item} has code {values[item, level]} at level {level + 1}"
            raise UserError(f"codes: {found}; it must be in 0 .. {last[level]}")
        group, counts = sequence_groups(values)
        if len(counts) < len(values):
            earlier = np.unique(group, return_index=True)[1][group]
            item = int(np.flatnonzero(earlier != np.arange(len(values)))[0])
            raise UserError(
                f"codes: items {earlier[item]} and {item} share the codes {values[item].tolist()}; "
                "codes must be unique, add a level with resolve_collisions"
            )
        if listed is None:
            return cls(matrix, sizes, Trie.build(matrix, sizes))
        kept = torch.as_tensor(listed).to(matrix.device)
        if kept.shape != matrix.shape[:1] or kept.dtype != torch.bool:
            raise ValueError(f"listed is {kept.dtype} {tuple(kept.shape)}, expected bool ({len(matrix)},)")
        rows = kept.nonzero().squeeze(1)
        return cls(matrix, sizes, Trie.build(matrix[rows], sizes).named(rows))

    @property
    def num_items(self) -> int:
        """`V`."""
        return len(self.codes)

    @property
    def num_levels(self) -> int:
        """`L`."""
        return len(self.level_sizes)

    @property
    def listed(self) -> Tensor:
        """(V,) bool, True for the items in the tree."""
        listed = torch.zeros(len(self.codes), dtype=torch.bool, device=self.codes.device)
        listed[self.trie.items] = True
        return listed

    def lookup(self, codes: Tensor) -> Tensor:  # (..., L) int64
        """Return (...) int64 items of full code sequences, -1 where they name none."""
        return self.trie.lookup(codes)

    def to(self, device: torch.device | str) -> Catalog:
        """Return the catalogue on `device`."""
        return Catalog(self.codes.to(device), self.level_sizes, self.trie.to(device))

    def with_outside(self) -> Catalog:
        """Return the catalogue with one more code per level, for all that is no code."""
        return Catalog.from_codes(self.codes, [size + 1 for size in self.level_sizes], self.listed)

    def write(self, path: Path) -> None:
        """Write Parquet (item, codes, and listed if any item is not), and `level_sizes` to a `.json` beside it."""
        codes = pl.Series("codes", self.codes.cpu().numpy().astype(np.int32)).cast(pl.List(pl.Int32))
        columns = [pl.Series("item", np.arange(self.num_items, dtype=np.int32)), codes]
        listed = self.listed.cpu().numpy()
        columns += [] if listed.all() else [pl.Series(LISTED, listed)]
        pl.DataFrame(columns).write_parquet(path)
        sidecar = json.dumps({"level_sizes": list(self.level_sizes)}) + "\n"
        path.with_suffix(".json").write_text(sidecar, encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Catalog:
        """Read the files of `write`; UserError if one is missing or damaged, or items are not 0 .. V-1."""
        sidecar = path.with_suffix(".json")
        try:
            sizes = json.loads(sidecar.read_text(encoding="utf-8"))["level_sizes"]
            if not isinstance(sizes, list) or not sizes or not all(type(size) is int and size > 0 for size in sizes):
                raise ValueError
        except FileNotFoundError:
            raise UserError(f"{sidecar}: no such file; it belongs beside the Parquet of the codes") from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f'{sidecar}: expected {{"level_sizes": [K_1, .., K_L]}} with positive integers') from None
        names = ["item", "codes", *(name for name in columns_of(path) if name == LISTED)]
        frame = read_table(path, names).sort("item")
        items = frame["item"]
        if not items.dtype.is_integer() or not np.array_equal(items.to_numpy(), np.arange(len(items))):
            raise UserError(f"{path}: column 'item' does not hold each of 0 .. {len(items) - 1} once; write it again")
        codes = code_matrix(frame["codes"], items, str(path))
        if len(frame) == 0:
            codes = codes.reshape(0, len(sizes))
        if codes.shape[1] != len(sizes):
            raise UserError(f"{path}: {codes.shape[1]} codes an item, but its .json has {len(sizes)} level_sizes")
        return cls.from_codes(codes, sizes, frame[LISTED].to_numpy() if LISTED in frame.columns else None)


def audit(
    codes_before: Tensor | NDArray[np.integer[Any]],  # (V, L') codes before collisions were resolved
    catalog: Catalog,
    *,
    reconstruction_error: float | None = None,
) -> dict[str, Any]:
    """Measure how well codes distinguish items, JSON-able.

    Before resolution `distinct_sequences`, `largest_collision` (most items on one sequence), `collision_rate` (share of
    items on shared ones) and `reconstruction_error`; `density` = V / Π K_l and `log10_density`; `per_level` its `size`,
    `codes_used`, `entropy` -Σ_k p_k log p_k in nats, `entropy_share` of log K_l, `largest_cluster` and `prefixes`.
    """
    before = torch.as_tensor(codes_before)
    if before.dim() != 2 or len(before) != catalog.num_items:
        raise ValueError(f"codes_before has shape {tuple(before.shape)}, expected ({catalog.num_items}, L)")
    shared = sequence_groups(before.cpu().numpy())[1]
    items = catalog.num_items
    levels = []
    for codes, size, prefixes in zip(catalog.codes.T, catalog.level_sizes, catalog.trie.node_counts[1:], strict=True):
        counts = torch.bincount(codes, minlength=size).to(torch.float64)
        shares = counts / max(items, 1)
        entropy = max(-float(torch.xlogy(shares, shares).sum()), 0.0)
        levels.append(
            {
                "size": size,
                "codes_used": int((counts > 0).sum()),
                "entropy": entropy,
                "entropy_share": entropy / math.log(size) if size > 1 else None,
                "largest_cluster": int(counts.max()),
                "prefixes": prefixes,
            }
        )
    log10_density = math.log10(items) - sum(map(math.log10, catalog.level_sizes)) if items else None
    return {
        "items": items,
        "levels": catalog.num_levels,
        "distinct_sequences": len(shared),
        "largest_collision": int(shared.max()) if items else 0,
        "collision_rate": int(shared[shared > 1].sum()) / items if items else 0.0,
        "reconstruction_error": reconstruction_error,
        "density": items / math.prod(catalog.level_sizes),
        "log10_density": log10_density,
        "per_level": levels,
    }
