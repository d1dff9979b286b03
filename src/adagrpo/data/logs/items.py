"""Read items' text, attributes and groups, and tables of items and users as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from adagrpo.data.columns import ATTRIBUTES, GROUPS, ITEM_ID, TEXT
from adagrpo.errors import UserError
from adagrpo.readers.cells import UNREADABLE, blank_to_null, identifiers, integers_if_all
from adagrpo.readers.chunks import read_table
from adagrpo.readers.formats import MAX_EXPANSION, columns_of, kind_of, one_line, require

DATES = (pl.Date, pl.Datetime)


def read_items(
    path: Path,
    *,
    id_column: str = ITEM_ID,
    text_columns: Sequence[str] = (),  # joined by a space
    attribute_columns: Sequence[str] = (),  # (nested) lists, or scalars, which become `column=value`
    group_columns: Sequence[str] = (),  # text, integers, booleans, or lists of these
    attribute_names: Path | None = None,
    max_expansion: float = MAX_EXPANSION,
) -> pl.DataFrame:
    """Read an item table; UserError for a missing or malformed file or column, or rows without or with equal ids.

    Columns: item_id, text, attributes and perhaps groups (lists of strings). Lists of integers are decoded by a Parquet
    file (attribute_id, name), else `attribute:<id>`.
    """
    path = Path(path)
    require(path, [id_column], columns_of(path), "data.items.id_column")
    columns = [id_column, *text_columns, *attribute_columns, *group_columns]
    table = read_table(path, columns, max_expansion, [id_column])
    if len(table) == 0:
        raise UserError(f"{path}: no rows; an item table has at least one item")
    ids = _ids(path, table[id_column])
    table = table.with_columns(_flat(path, table[name]) for name in dict.fromkeys([*text_columns, *attribute_columns]))
    texts = [_as_text(name, table[name].dtype) for name in text_columns]
    decode = pl.concat_str(pl.lit("attribute:"), pl.element())
    if attribute_names:
        if kind_of(Path(attribute_names)) != "Parquet":
            what = "attribute names are a Parquet file with the columns attribute_id and name"
            raise UserError(f"{attribute_names}: {what}")
        named = read_table(Path(attribute_names), ["attribute_id", "name"], max_expansion).drop_nulls()
        named = named.filter(pl.col("name").str.strip_chars() != "").unique("attribute_id", keep="first")
        known = pl.element().replace_strict(named["attribute_id"], named["name"], default=None, return_dtype=pl.String)
        decode = pl.coalesce(known, decode)
    lists = [_as_attributes(name, table[name].dtype, decode).fill_null([]) for name in attribute_columns]
    empty = pl.lit([], dtype=pl.List(pl.String))
    groups = [_as_group(path, name, table[name].dtype).fill_null([]) for name in group_columns]
    return table.select(
        pl.lit(ids).alias(ITEM_ID),
        (pl.concat_str(texts, separator=" ", ignore_nulls=True) if texts else pl.lit("")).alias(TEXT),
        (pl.concat_list(lists) if lists else empty).alias(ATTRIBUTES),
        *([pl.concat_list(groups).alias(GROUPS)] if groups else []),
    )


def read_columns(
    path: Path, id_column: str, of: str, option: str, max_expansion: float = MAX_EXPANSION
) -> pl.DataFrame:
    """Read a table's columns as they are, but lists and nested ones; those of a CSV file are text.

    Returns the ids as text, called `id_column`, and the other columns. `of` is what a row is of, item or user; `option`
    names the id column in messages. UserError for a malformed file, or a row without id or with that of another.
    """
    names = columns_of(path)
    require(path, [id_column], names, option)
    parents = {name.rpartition(".")[0] for name in names}
    table = read_table(path, [name for name in names if name not in parents], max_expansion, [id_column])
    kept = [name for name, dtype in table.schema.items() if not dtype.is_nested() and dtype not in UNREADABLE]
    ids = _ids(path, table[id_column], of).cast(pl.String)
    return table.select(pl.lit(ids).alias(id_column), *(name for name in kept if name != id_column))


def _ids(path: Path, column: pl.Series, of: str = "item") -> pl.Series:
    ids = identifiers(blank_to_null(column))
    if ids.null_count():
        row = int(ids.is_null().arg_max() or 0) + 1
        raise UserError(f"{path}, row {row}: {column.name} is empty or not an id; every {of} needs one")
    ids = integers_if_all(ids)
    if ids.n_unique() < len(ids):
        second = int(np.argmin(ids.is_first_distinct().to_numpy()))
        first = int(np.argmax((ids == ids[second]).to_numpy()))
        name, a = one_line(str(ids[first])), "an" if of == "item" else "a"
        raise UserError(f"{path}, rows {first + 1} and {second + 1}: both are {of} '{name}'; {a} {of} has one row")
    return ids


def _flat(path: Path, values: pl.Series) -> pl.Series:
    leaf: Any = values.dtype
    while isinstance(leaf, pl.List | pl.Array):
        leaf = leaf.inner
    if leaf.is_nested() or leaf in UNREADABLE:
        dtype = one_line(str(values.dtype))
        raise UserError(
            f"{path}: column '{one_line(values.name)}' holds {dtype}; what is said of an item (data.items.text,"
            " data.items.attributes) is text, numbers, or lists of these; a field within it is named with a dot"
        )
    values = values.cast(_lists(values.dtype))
    while isinstance(values.dtype, pl.List) and isinstance(values.dtype.inner, pl.List):
        values = values.list.eval(pl.element().explode())
    if leaf.is_float():  # NaN says nothing, as in a log
        nothing = pl.element().fill_nan(None)
        return values.list.eval(nothing) if isinstance(values.dtype, pl.List) else values.fill_nan(None)
    return values


def _lists(dtype: Any) -> Any:
    return pl.List(_lists(dtype.inner)) if isinstance(dtype, pl.List | pl.Array) else dtype


def _as_text(name: str, dtype: pl.DataType) -> pl.Expr:
    column = pl.col(name).cast(pl.List(pl.String)).list.join(" ") if dtype == pl.List else pl.col(name).cast(pl.String)
    return pl.when(column.str.strip_chars() != "").then(column)


def _as_attributes(name: str, dtype: pl.DataType, decode: pl.Expr) -> pl.Expr:
    if not isinstance(dtype, pl.List):
        text = _as_text(name, dtype)
        return pl.when(text.is_not_null()).then(pl.concat_list(pl.concat_str(pl.lit(f"{name}="), text)))
    values = pl.col(name).list.drop_nulls()
    if dtype.inner.is_integer():
        return values.list.eval(decode)
    return _without_blanks(values.cast(pl.List(pl.String)))


def _without_blanks(texts: pl.Expr) -> pl.Expr:
    return texts.list.eval(pl.element().filter(pl.element().str.strip_chars() != ""))


def _as_group(path: Path, name: str, dtype: pl.DataType) -> pl.Expr:
    inner = dtype.inner if isinstance(dtype, pl.List) else dtype
    if not (inner.is_integer() or inner in (pl.String, pl.Boolean, pl.Categorical, pl.Enum, pl.Null, *DATES)):
        raise UserError(
            f"{path}: column '{name}' holds {inner}; a group (data.items.groups) is of text, whole numbers, booleans or"
            " dates"
        )
    values = pl.col(name) if isinstance(dtype, pl.List) else pl.concat_list(name)
    texts = _without_blanks(values.cast(pl.List(pl.String)).list.drop_nulls())
    return texts.list.eval(pl.concat_str(pl.lit(f"{name}="), pl.element()))
