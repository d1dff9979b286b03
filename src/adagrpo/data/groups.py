"""Named groups of items: which items have a value of a column of the item table.

A group is a column, such as `category`, and a value of it, such as `toys`. They come from the columns that
`data.items.groups` names, and from attributes of the form `column=value`, which is how the item table's columns of
single values enter the attributes. Everything is compared as text; true and false are as a request writes them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.data.columns import ATTRIBUTES, GROUPS, ITEM
from adagrpo.errors import UserError

__all__ = ["GroupValue", "ItemGroups", "load_groups", "no_groups"]

GroupValue = str | int | bool
SPELLINGS = {True: ("true", "True", "TRUE", "1"), False: ("false", "False", "FALSE", "0")}


class _Column(NamedTuple):
    """Items by value: those of value `v` are `items[offsets[v] : offsets[v + 1]]`."""

    values: Mapping[str, int]
    offsets: NDArray[np.int64]
    items: NDArray[np.int32]


class ItemGroups:
    """The groups of `V` items; made by `load_groups` or from a table.

    Example:
        >>> attributes = [["category=toys", "brand=acme"], ["category=games"], []]
        >>> groups = ItemGroups(pl.DataFrame({"item": [0, 1, 2], "attributes": attributes}))
        >>> groups.names, groups.values("category"), groups.items("category", "games").tolist()
        (['brand', 'category'], ['games', 'toys'], [1])
    """

    def __init__(self, items: pl.DataFrame) -> None:
        """Index the items.

        Args:
            items: `V` rows with the columns item and, each a list of `column=value`, attributes and groups; one of the
                two may be missing.
        """
        self.count = len(items)
        listed = [items.select(ITEM, pl.col(name).alias(GROUPS)) for name in (ATTRIBUTES, GROUPS) if name in items]
        schema = {ITEM: pl.Int32, GROUPS: pl.List(pl.String)}
        table = pl.concat([part.cast(schema) for part in listed]) if listed else pl.DataFrame(schema=schema)  # type: ignore[arg-type]
        parts = pl.col(GROUPS).str.splitn("=", 2)
        pairs = (
            table.explode(GROUPS)
            .drop_nulls()
            .select(ITEM, column=parts.struct.field("field_0"), value=parts.struct.field("field_1"))
            .drop_nulls()
            .unique()
            .sort("column", "value", ITEM)
        )
        self._columns = {str(name): _column(part) for (name,), part in pairs.group_by(["column"], maintain_order=True)}

    @property
    def names(self) -> list[str]:
        """The columns."""
        return sorted(self._columns)

    def values(self, name: str) -> list[str]:
        """The values of a column.

        Raises:
            UserError: there is no such column.
        """
        return list(self._of(name, name).values)

    def check(self, name: str, field: str) -> None:
        """Refuse a column that is not there; `field` is how a message calls it."""
        self._of(name, field)

    def items(self, name: str, value: GroupValue, field: str | None = None) -> NDArray[np.int32]:
        """The items that have a value, in ascending order.

        Args:
            name: of the column.
            value: of it; true and false also find the spellings of other programs.
            field: how a message calls the column.

        Raises:
            UserError: there is no such column, or no item has the value.
        """
        column, field = self._of(name, field or name), field or name
        spellings = SPELLINGS[value] if isinstance(value, bool) else (str(value),)
        found = [column.values[text] for text in spellings if text in column.values]
        if not found:
            raise UserError(f"{field}: no item has the value {spellings[0]!r}; {_nearest(spellings[0], column.values)}")
        return column.items[column.offsets[found[0]] : column.offsets[found[0] + 1]]

    def _of(self, name: str, field: str) -> _Column:
        if name not in self._columns:
            known = (
                _nearest(name, self._columns) if self._columns else "data.items.groups names columns of the item table"
            )
            raise UserError(f"{field}: the items have no group {name!r}; {known}")
        return self._columns[name]


def load_groups(directory: Path) -> ItemGroups:
    """The groups of the prepared items.

    Args:
        directory: of `adagrpo.data.prepared.write_prepared`.
    """
    path = directory / "items.parquet"
    there = pl.read_parquet_schema(path)
    return ItemGroups(pl.read_parquet(path, columns=[name for name in (ITEM, ATTRIBUTES, GROUPS) if name in there]))


def no_groups() -> ItemGroups:
    """Those of items of which nothing is known."""
    return ItemGroups(pl.DataFrame({ITEM: []}, schema={ITEM: pl.Int32}))


def _column(pairs: pl.DataFrame) -> _Column:
    """One column's pairs of item and value, sorted by value."""
    counts = pairs["value"].rle().struct.unnest()
    offsets = np.concatenate([[0], counts["len"].to_numpy().cumsum()]).astype(np.int64)
    return _Column({value: place for place, value in enumerate(counts["value"])}, offsets, pairs[ITEM].to_numpy())


def _nearest(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, list(known)[:10_000], n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    shown = sorted(known)[:8]
    return f"known: {', '.join(shown)}{' ...' if len(known) > len(shown) else ''}"
