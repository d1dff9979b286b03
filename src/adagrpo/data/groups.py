"""Named groups of items: a column and a value, such as `category` and `toys`, compared as text.

They come from the columns `data.items.groups` and attributes `column=value`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.data.columns import ATTRIBUTES, GROUPS, ITEM
from adagrpo.errors import UserError

GroupValue = str | int | bool
LONGEST, COMPARED = 60, 1000  # characters of a name that a message repeats, names that it is compared with
SPELLINGS = {True: ("true", "True", "TRUE", "1"), False: ("false", "False", "FALSE", "0")}


class UnknownGroup(UserError):
    """Unknown column or value; `public_message` omits it."""

    def __init__(self, message: str, public_message: str) -> None:
        super().__init__(message)
        self.public_message = public_message


class _Column(NamedTuple):  # items of value `v` are `items[offsets[v] : offsets[v + 1]]`
    values: Mapping[str, int]
    offsets: NDArray[np.int64]
    items: NDArray[np.int32]


class ItemGroups:
    """The groups of `V` items."""

    def __init__(self, items: pl.DataFrame) -> None:
        self.count = len(items)
        self._labels = [items.sort(ITEM)[name] for name in (ATTRIBUTES, GROUPS) if name in items]
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

    def about(self, item: int) -> list[str]:
        """Return an item's attributes and groups.

        >>> items = pl.DataFrame({"item": [0, 1], "attributes": [["category=toys", "red"], None]})
        >>> ItemGroups(items).about(0), ItemGroups(items).about(1)
        (['category=toys', 'red'], [])
        """
        cells = [column[item] for column in self._labels] if item < self.count else []
        return [text for cell in cells if cell is not None for text in cell]

    @property
    def names(self) -> list[str]:
        """Return the columns, sorted."""
        return sorted(self._columns)

    def values(self, name: str) -> list[str]:
        """Return a column's values."""
        return list(self._of(name, name).values)

    def check(self, name: str, field: str) -> None:
        """Raise `UnknownGroup` for an unknown column, called `field`."""
        self._of(name, field)

    def items(self, name: str, value: GroupValue, field: str | None = None) -> NDArray[np.int32]:
        """Return the items with a value, ascending; booleans match any spelling.

        UnknownGroup for an unknown column, called `field`, or value.
        """
        column, field = self._of(name, field or name), field or name
        spellings = SPELLINGS[value] if isinstance(value, bool) else (str(value),)
        found = [column.values[text] for text in spellings if text in column.values]  # a table may have come in parts
        if not found:
            message = f"{field}: no item has the value {_short(spellings[0])}; {_nearest(spellings[0], column.values)}"
            raise UnknownGroup(message, f"{field}: no item has one of the values")
        parts = [column.items[column.offsets[index] : column.offsets[index + 1]] for index in found]
        return parts[0] if len(parts) == 1 else np.unique(np.concatenate(parts))

    def _of(self, name: str, field: str) -> _Column:
        if name not in self._columns:
            hint = "data.items.groups names columns of the item table"
            known = _nearest(name, self._columns) if self._columns else hint
            there = f"known: {', '.join(self.names[:8])}" if self._columns else "they have none"
            message = f"{field}: the items have no group {_short(name)}; {known}"
            raise UnknownGroup(message, f"{field.partition('.')[0]}: names a group that the items do not have; {there}")
        return self._columns[name]


def no_groups() -> ItemGroups:
    """Return groups without items."""
    return ItemGroups(pl.DataFrame({ITEM: []}, schema={ITEM: pl.Int32}))


def _column(pairs: pl.DataFrame) -> _Column:
    counts = pairs["value"].rle().struct.unnest()
    offsets = np.concatenate([[0], counts["len"].to_numpy().cumsum()]).astype(np.int64)
    return _Column({value: index for index, value in enumerate(counts["value"])}, offsets, pairs[ITEM].to_numpy())


def _short(name: str) -> str:
    return repr(name if len(name) <= LONGEST else f"{name[:LONGEST]}...")


def _nearest(name: str, known: Mapping[str, object]) -> str:
    few = len(known) <= COMPARED and len(name) <= LONGEST  # the comparison takes time
    near = difflib.get_close_matches(name, known, n=1) if few else []
    if near:
        return f"did you mean {near[0]!r}?"
    shown = sorted(known)[:8]
    return f"known: {', '.join(shown)}{' ...' if len(known) > len(shown) else ''}"
