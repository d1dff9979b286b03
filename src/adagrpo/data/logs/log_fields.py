"""The columns of logs, and how their values are parsed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import polars as pl

from adagrpo.config.data import Columns
from adagrpo.data.columns import (
    BASKET,
    CLICKED,
    EVENT,
    ITEM_ID,
    POSITION,
    PROPENSITY,
    QUANTITY,
    RATING,
    SLOT,
    TIMESTAMP,
    USER_ID,
)
from adagrpo.data.logs.cells import LONGEST_ID, booleans, identifiers, numbers, slots
from adagrpo.data.logs.formats import columns_of, listed
from adagrpo.data.logs.times import Times
from adagrpo.errors import UserError

__all__ = ["Columns", "Field", "Refusals", "fields_of"]

AN_ID = f"an id of up to {LONGEST_ID} characters"


@dataclass(frozen=True)
class Refusals:
    """Which readable rows and files to reject."""

    items: pl.Series | None = None  # ids; rows of other items are bad
    after: float | None = None  # rows of a later timestamp are bad, in the unit of the log
    repeats: bool = False  # rows whose fields are all those of an earlier one are bad
    lists: bool = True  # a file most of whose items are texts of lists is refused, see `adagrpo.data.logs.cells`


class Field(NamedTuple):
    """How to parse a column."""

    source: str  # the column's name in the file
    required: bool
    expected: str  # what would be right
    parse: Callable[[pl.Series], pl.Series]  # null where a value cannot be used
    times: Times | None = None  # of a field of times, how they are written


def fields_of(paths: Sequence[Path], columns: Columns, ordered: bool, rated: bool) -> dict[str, Field]:
    """Map canonical names to their parsers; UserError unless exactly one column orders the rows.

    By default an unused column `timestamp`, or else `position`, does; ratings may define clicks.
    """
    if ordered and columns.timestamp is not None and columns.order is not None:
        raise UserError("data.columns: timestamp and order are both given; one of them orders the interactions")
    if ordered and columns.timestamp is None and columns.order is None:
        path = Path(paths[0])
        available, taken = columns_of(path), set(columns.model_dump().values())  # a slot is no order
        if TIMESTAMP in available and TIMESTAMP not in taken:
            columns = columns.model_copy(update={"timestamp": TIMESTAMP})
        elif POSITION in available and POSITION not in taken:
            columns = columns.model_copy(update={"order": POSITION})
        else:
            raise UserError(
                f"{path}: which column orders the interactions? set data.columns.timestamp or data.columns.order to one"
                f" of {listed(available)}"
            )
    fields = {
        USER_ID: Field(columns.user, True, AN_ID, identifiers),
        ITEM_ID: Field(columns.item, True, AN_ID, identifiers),
    }
    if columns.timestamp is not None:
        times = Times()
        fields[TIMESTAMP] = Field(columns.timestamp, True, times.expected, times.read, times)
    elif columns.order is not None:
        fields[POSITION] = Field(columns.order, True, "a number", numbers)
    if columns.basket is not None:
        fields[BASKET] = Field(columns.basket, True, AN_ID, identifiers)
    if columns.quantity is not None:
        fields[QUANTITY] = Field(columns.quantity, False, "a number", numbers)
    if columns.event is not None:
        fields[EVENT] = Field(columns.event, False, "text", lambda values: values.cast(pl.String))
    if columns.rating is not None:
        fields[RATING] = Field(columns.rating, False, "a number", lambda values: numbers(values).cast(pl.Float64))
    if columns.clicked is not None:
        fields[CLICKED] = Field(columns.clicked, False, "1, 0, true, false or nothing", booleans)
    if columns.clicked is not None or rated:
        if columns.slot is not None:
            fields[SLOT] = Field(columns.slot, False, "a whole number >= 0", slots)
        if columns.propensity is not None:
            fields[PROPENSITY] = Field(
                columns.propensity, False, "a probability", lambda values: numbers(values, 0.0, 1.0).cast(pl.Float64)
            )
    return fields
