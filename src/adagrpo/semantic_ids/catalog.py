"""The catalogue: the codes of each item, their storage and quality.

Rows `codes[item] = (c_1 .. c_L)` are distinct, so a sequence names at most one item; collisions are resolved before
(`adagrpo.semantic_ids.collisions`). A delisted item keeps its row for histories, but is not in the tree, so
constrained decoding cannot write it.
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

from adagrpo.data.logs.cells import id_texts
from adagrpo.data.logs.formats import columns_of
from adagrpo.data.logs.unpacking import MAX_EXPANSION
from adagrpo.data.logs.whole_tables import read_table
from adagrpo.errors import UserError, first_of
from adagrpo.semantic_ids.collisions import sequence_groups
from adagrpo.semantic_ids.trie import Trie

LISTED = "listed"
LARGEST_CODE = 2**31 - 1  # codes are stored in 32 bits


@dataclass(frozen=True, eq=False)
class Catalog:
    """Codes of `V` items; build it with `Catalog.from_codes`.

    Attributes:
        codes: distinct rows.
        level_sizes: `(K_1 .. K_L)`, number of codes of each level, used or not.
        trie: prefix tree of the listed items.

    Example:
        >>> catalog = Catalog.from_codes(torch.tensor([[0, 1], [2, 0]]))
        >>> catalog.level_sizes, catalog.num_items, catalog.num_levels
        ((3, 2), 2, 2)
        >>> catalog.lookup(torch.tensor([[2, 0], [2, 1]])).tolist()
        [1, -1]
    """

    codes: Tensor  # (V, L) int64
    level_sizes: tuple[int, ...]
    trie: Trie

    @classmethod
    def from_codes(
        cls,
        codes: Tensor | NDArray[np.integer[Any]],  # (V, L)
        level_sizes: Sequence[int] | None = None,
        listed: Tensor | NDArray[np.bool_] | None = None,  # (V,)
    ) -> Catalog:
        """Check codes and build their catalogue.

        Args:
            codes: row `i` names item `i`.
            level_sizes: `(K_1 .. K_L)`; None: the largest code of each level plus one.
            listed: False for items to leave out of the tree; None: all are listed.

        Raises:
            UserError: two items share their codes, or a code is out of range.
        """
        matrix = torch.as_tensor(codes)
        if matrix.dim() != 2 or matrix.shape[1] == 0 or matrix.is_floating_point():
            raise ValueError(f"codes is {matrix.dtype} {tuple(matrix.shape)}, expected integers (V, L) with L >= 1")
        matrix = matrix.to(torch.int64)
        values = matrix.cpu().numpy()
        largest = values.max(axis=0, initial=0)
        sizes = tuple(int(code) + 1 for code in largest) if level_sizes is None else tuple(map(int, level_sizes))
        if len(sizes) != matrix.shape[1]:
            raise ValueError(f"level_sizes has {len(sizes)} levels, codes {matrix.shape[1]}")
        _check_range(values, sizes)
        _check_distinct(values)
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
        """(V,) bool, True for the items in the tree.

        Example:
            >>> some = torch.tensor([True, False, True])
            >>> Catalog.from_codes(torch.tensor([[0], [1], [2]]), listed=some).listed.tolist()
            [True, False, True]
        """
        listed = torch.zeros(len(self.codes), dtype=torch.bool, device=self.codes.device)
        listed[self.trie.items] = True
        return listed

    def lookup(
        self,
        codes: Tensor,  # (..., L) int64
    ) -> Tensor:
        """Return (...) int64 items of full code sequences, -1 where they name none."""
        return self.trie.lookup(codes)

    def to(self, device: torch.device | str) -> Catalog:
        """Return the catalogue on `device`."""
        return Catalog(self.codes.to(device), self.level_sizes, self.trie.to(device))

    def with_outside(self) -> Catalog:
        """Return the catalogue with one more code per level, for whatever a policy writes other than codes.

        Example:
            >>> Catalog.from_codes(torch.tensor([[0, 1], [2, 0]])).with_outside().level_sizes
            (4, 3)
        """
        return Catalog.from_codes(self.codes, [size + 1 for size in self.level_sizes], self.listed)

    def write(self, path: Path) -> None:
        """Write Parquet, and `level_sizes` to a `.json` of the same name.

        Columns: item int32, codes list<int32>, and listed bool if any item is not.
        """
        codes = pl.Series("codes", self.codes.cpu().numpy().astype(np.int32)).cast(pl.List(pl.Int32))
        columns = [pl.Series("item", np.arange(self.num_items, dtype=np.int32)), codes]
        listed = self.listed.cpu().numpy()
        columns += [] if listed.all() else [pl.Series(LISTED, listed)]
        pl.DataFrame(columns).write_parquet(path)
        sidecar = json.dumps({"level_sizes": list(self.level_sizes)}) + "\n"
        path.with_suffix(".json").write_text(sidecar, encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Catalog:
        """Read the files of `write`.

        Raises:
            UserError: a file is missing or damaged, items are not 0 .. V-1, or two share their codes.
        """
        sizes = _read_level_sizes(path.with_suffix(".json"))
        names = ["item", "codes", *(name for name in columns_of(path) if name == LISTED)]
        frame = read_table(path, names).sort("item")
        items = frame["item"]
        if not items.dtype.is_integer() or not np.array_equal(items.to_numpy(), np.arange(len(items))):
            raise UserError(f"{path}: column 'item' does not hold each of 0 .. {len(items) - 1} once; write it again")
        codes = _code_matrix(frame["codes"], items, str(path))
        if len(frame) == 0:
            codes = codes.reshape(0, len(sizes))
        if codes.shape[1] != len(sizes):
            raise UserError(f"{path}: {codes.shape[1]} codes an item, but its .json has {len(sizes)} level_sizes")
        return cls.from_codes(codes, sizes, frame[LISTED].to_numpy() if LISTED in frame.columns else None)


def import_semantic_ids(
    path: Path,
    item_ids: pl.Series,
    *,
    column: str,
    id_column: str = "item_id",
    max_expansion: float = MAX_EXPANSION,
) -> NDArray[np.int64]:
    """Read published codes in the order of the catalogue; collisions are kept.

    Args:
        path: Parquet with one row per item and a list column of integer codes.
        item_ids: (V,) ids of the catalogue, compared as text.
        max_expansion: see `adagrpo.data.logs.unpacking`.

    Returns:
        (V, L) int64; `(0, 0)` without items.

    Raises:
        UserError: a column is missing, or an item does not have one row of L codes.
    """
    frame = read_table(path, [id_column, column], max_expansion)
    names = item_ids.cast(pl.String)
    published = pl.DataFrame({"id": id_texts(frame[id_column]), "sid": frame[column]})
    twice = published.filter(pl.col("id").is_duplicated() & pl.col("id").is_in(names.implode()))
    if len(twice):
        raise UserError(f"{path}: item {twice['id'][0]!r} has more than one row in column {id_column!r}; keep one")
    wanted = pl.DataFrame({"id": names})
    missing = wanted.join(published, on="id", how="anti", maintain_order="left")
    if len(missing):
        raise UserError(
            f"{path}: no row for item {first_of(missing['id'].to_list())} of {len(wanted)} items; "
            f"every item of the catalogue needs one (column {id_column!r})"
        )
    joined = wanted.join(published, on="id", how="left", maintain_order="left")
    codes = _code_matrix(joined["sid"], joined["id"], f"{path}: column {column!r}")
    outside = np.flatnonzero(((codes < 0) | (codes > LARGEST_CODE)).any(axis=1))
    if len(outside):
        row = int(outside[0])
        raise UserError(
            f"{path}: column {column!r}: item {joined['id'][row]!r} has {codes[row].tolist()}; "
            f"codes start at 0 and end at {LARGEST_CODE}"
        )
    return codes


def audit(
    codes_before: Tensor | NDArray[np.integer[Any]],  # (V, L') codes before collisions were resolved
    catalog: Catalog,
    *,
    reconstruction_error: float | None = None,
) -> dict[str, Any]:
    """Measure how well codes distinguish items.

    Returns:
        JSON-able: `items`, `levels`; before resolution `distinct_sequences`, `largest_collision` (most items on one
        sequence), `collision_rate` (share of items on shared ones) and `reconstruction_error`; `density` = V / Π K_l
        and `log10_density` (None without items); and `per_level`, a list of `size` K_l, `codes_used`, `entropy`
        -Σ_k p_k log p_k in nats, `entropy_share` of log K_l (None if K_l is 1), `largest_cluster` (most items on one
        code) and `prefixes` (distinct ones so far).
    """
    before = torch.as_tensor(codes_before)
    if before.dim() != 2 or len(before) != catalog.num_items:
        raise ValueError(f"codes_before has shape {tuple(before.shape)}, expected ({catalog.num_items}, L)")
    shared = sequence_groups(before.cpu().numpy())[1]
    items = catalog.num_items
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
        "per_level": [_audit_level(catalog, level) for level in range(catalog.num_levels)],
    }


def _audit_level(catalog: Catalog, level: int) -> dict[str, Any]:
    size = catalog.level_sizes[level]
    counts = torch.bincount(catalog.codes[:, level], minlength=size).to(torch.float64)
    shares = counts / max(catalog.num_items, 1)
    entropy = max(-float(torch.xlogy(shares, shares).sum()), 0.0)
    return {
        "size": size,
        "codes_used": int((counts > 0).sum()),
        "entropy": entropy,
        "entropy_share": entropy / math.log(size) if size > 1 else None,
        "largest_cluster": int(counts.max()),
        "prefixes": catalog.trie.node_counts[level + 1],
    }


def _check_range(
    codes: NDArray[np.int64],  # (V, L)
    level_sizes: tuple[int, ...],
) -> None:
    last = [min(size - 1, LARGEST_CODE) for size in level_sizes]
    outside = np.argwhere((codes < 0) | (codes > np.asarray(last)))
    if len(outside):
        item, level = (int(index) for index in outside[0])
        raise UserError(
            f"codes: item {item} has code {codes[item, level]} at level {level + 1}; it must be in 0 .. {last[level]}"
        )


def _check_distinct(
    codes: NDArray[np.int64],  # (V, L)
) -> None:
    group, counts = sequence_groups(codes)
    if len(counts) < len(codes):
        earlier = np.unique(group, return_index=True)[1][group]
        item = int(np.flatnonzero(earlier != np.arange(len(codes)))[0])
        raise UserError(
            f"codes: items {earlier[item]} and {item} share the codes {codes[item].tolist()}; "
            "codes must be unique, add a level with resolve_collisions"
        )


def _read_level_sizes(path: Path) -> tuple[int, ...]:
    try:
        sizes = json.loads(path.read_text(encoding="utf-8"))["level_sizes"]
        if not isinstance(sizes, list) or not sizes or not all(type(size) is int and size > 0 for size in sizes):
            raise ValueError
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; it belongs beside the Parquet of the codes") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f'{path}: expected {{"level_sizes": [K_1, .., K_L]}} with positive integers') from None
    return tuple(sizes)


def _code_matrix(
    lists: pl.Series,  # (V,) list of integers
    names: pl.Series,  # (V,) what to call each row in an error
    source: str,
) -> NDArray[np.int64]:
    """Return (V, L) codes of a column of lists of one length."""
    if isinstance(lists.dtype, pl.Array):
        lists = lists.arr.to_list()
    if not isinstance(lists.dtype, pl.List) or not lists.dtype.inner.is_integer():
        raise UserError(f"{source} holds {lists.dtype}; expected lists of integers")
    if len(lists) == 0:
        return np.empty((0, 0), dtype=np.int64)
    lengths = lists.list.len().fill_null(0).to_numpy()
    filled = lists.list.drop_nulls().list.len().fill_null(0).to_numpy()
    levels = int(np.bincount(lengths[lengths > 0], minlength=1).argmax())  # most frequent length above 0
    bad = np.flatnonzero((lengths != levels) | (filled != levels) | (filled == 0))
    if len(bad):
        row = int(bad[0])
        value = lists.slice(row, 1).to_list()[0]
        raise UserError(
            f"{source}: item {names[row]!r} has {value}; expected {levels or 'some'} integers, as most items have"
        )
    return lists.explode().to_numpy().astype(np.int64).reshape(len(lists), levels)
