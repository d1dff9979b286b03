"""Plain text of numbers and names to tables, with one line said where a file is not what it should be."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.errors import UserError

__all__ = ["matrix_of", "rows_of"]


def rows_of(content: bytes, name: str, schema: Mapping[str, type[pl.DataType]], separator: str = ",") -> pl.DataFrame:
    """A table of a text file without header.

    >>> rows_of(b"1::7\\n2::8\\n", "x.dat", {"user": pl.Int32, "item": pl.Int32}, "::")["item"].to_list()
    [7, 8]

    Args:
        content: of the file.
        name: of it, for messages.
        schema: its columns.
        separator: between two values; two characters become one, which must not occur otherwise.

    Raises:
        UserError: a row has another number of values, or a value is of another type.
    """
    one = separator if len(separator) == 1 else "\t"
    try:
        table = pl.read_csv(
            io.BytesIO(content if one == separator else content.replace(separator.encode(), one.encode())),
            has_header=False,
            separator=one,
            quote_char=None,
            schema=dict(schema),
            encoding="utf8-lossy",
        )
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{name}: is not a table of {separator.join(schema)}; get it anew") from error
    if any(table.null_count().row(0)):
        raise UserError(f"{name}: is not a table of {separator.join(schema)}, or is cut off; get it anew")
    return table


def matrix_of(content: bytes, name: str) -> NDArray[np.float64]:
    """A matrix of numbers between spaces, a row a line.

    Raises:
        UserError: it is none.
    """
    try:
        return np.loadtxt(io.BytesIO(content), ndmin=2)
    except ValueError as error:
        raise UserError(f"{name}: is no matrix of numbers, or is cut off; get it anew") from error
