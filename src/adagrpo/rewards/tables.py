"""Features of a model file by name: columns of the item table, of a table of users, and our own.

A name that stands in two of these is refused; `item.price`, `user.price` and `ours.age` say which is meant.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import polars as pl

from adagrpo.errors import UserError
from adagrpo.readers.cells import blank_to_null
from adagrpo.rewards.features import FEATURES
from adagrpo.rewards.model_files import MISSING_TEXT, Known, TreeModel

SHOWN = 100  # characters of a feature's name in a message
TRUE, FALSE = ("true", "True", "TRUE"), ("false", "False", "FALSE")


@dataclass(frozen=True)
class Tables:
    """The columns that a model's features may be."""

    items: pl.DataFrame = field(default_factory=pl.DataFrame)  # (V,) columns as they are, without the id
    users: pl.DataFrame = field(default_factory=pl.DataFrame)  # without the id
    rows: Mapping[str, int] = field(default_factory=dict)  # of `users`, by id as text
    item_file: str = ""  # in messages; empty: none is given
    user_file: str = ""


class Feature(NamedTuple):
    """Where a feature of a model comes from.

    `values` are of each item or user and, last, of one that is not known; ours have a column in `FEATURES`.
    """

    of: Literal["item", "user", "ours"]
    values: pl.Series | None = None
    column: int = 0


def features_of(model: TreeModel, tables: Tables) -> list[Feature]:
    """Find a model's features, in its order, with numbers or texts as the model takes them.

    UserError if one is nowhere, stands in two tables, or has values of another type than the model states.
    """
    there = {"item": tables.items.columns, "user": tables.users.columns, "ours": list(FEATURES)}
    plain = {
        kind: {name.replace(" ", "_") if model.renamed else name: name for name in names}
        for kind, names in there.items()
    }
    said = {"item": tables.item_file, "user": tables.user_file, "ours": "our own features"}
    found = []
    for name in model.names:
        kind, dot, rest = name.partition(".")
        places = [one for one in there if name in plain[one]]
        if not places and dot and rest in plain.get(kind, ()):
            places, called = [kind], plain[kind][rest]
        elif len(places) == 1:
            called = plain[places[0]][name]
        elif places:
            raise UserError(
                f"{model.path}: the feature '{name}' is in {' and in '.join(said[one] for one in places)}; call it"
                f" {' or '.join(f'{one}.{name}' for one in places)} when the model is fitted"
            )
        else:
            raise UserError(f"{model.path}: the feature '{name[:SHOWN]}' is nowhere: {_looked(name, said, plain)}")
        if places[0] == "ours":
            found.append(Feature("ours", column=FEATURES.index(called)))
            continue
        of = tables.items if places[0] == "item" else tables.users
        where = f"{said[places[0]]}: the column '{called}'"
        values = _encoded(of[called].extend_constant(None, 1), model, name, where)
        found.append(Feature("item" if places[0] == "item" else "user", values))
    return found


def _looked(name: str, said: Mapping[str, str], plain: Mapping[str, Mapping[str, str]]) -> str:
    tables = {"item": ("the item table", "--items"), "user": ("the table of users", "--users")}
    looked = [f"{what} {said[kind]}" for kind, (what, _) in tables.items() if said[kind]]
    lacking = [option for kind, (_, option) in tables.items() if not said[kind]]
    names = [known for of in plain.values() for known in of]
    near = difflib.get_close_matches(name[:SHOWN], names, n=1, cutoff=0.0)[0]
    return (
        f"looked for in {', '.join(looked)}{' and ' if looked else ''}{said['ours']}"
        + (f" ({' and '.join(lacking)} not given)" if lacking else "")
        + f"; the nearest name is '{near}'"
    )


def _encoded(column: pl.Series, model: TreeModel, name: str, where: str) -> pl.Series:
    """The column as numbers with NaN, or texts."""
    column = blank_to_null(column)
    if name not in model.categories:
        return _numbers(column, f"{where} holds {{}}, and {model.path} takes a number")
    known = model.categories[name]
    if model.texts:
        if column.dtype.is_float() or column.dtype.is_temporal():
            raise UserError(
                f"{where} holds {column.dtype}, and {model.path} takes a category: a text or a whole number"
            )
        if column.dtype == pl.Boolean:  # as Python writes them
            column = pl.select(pl.when(column).then(pl.lit("True")).when(~column).then(pl.lit("False"))).to_series()
        return column.cast(pl.String).fill_null(MISSING_TEXT)
    if known is None:
        return _numbers(column, f"{where} holds {{}}, and {model.path} takes a category by its number")
    return _by_number(column, known, f"{where}: none of its values is a category of {model.path}, which knows {{}}")


def _numbers(column: pl.Series, message: str) -> pl.Series:
    if column.dtype == pl.String:
        switched = column.replace(dict.fromkeys(TRUE, "1") | dict.fromkeys(FALSE, "0"))
        read = switched.str.strip_chars().cast(pl.Float64, strict=False)
        wrong = column.filter(read.is_null() & column.is_not_null())
        if len(wrong):
            raise UserError(message.format(repr(wrong[0][:SHOWN])))
        return read.fill_null(np.nan)
    if not (column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null)):
        raise UserError(message.format(column.dtype))
    return column.cast(pl.Float64).fill_null(np.nan)


def _by_number(column: pl.Series, known: Known, message: str) -> pl.Series:
    if all(isinstance(value, str) for value in known):
        keys: pl.Series = column.cast(pl.String)
        table = {str(value): float(number) for number, value in enumerate(known)}
    else:
        keys = column.cast(pl.String).replace(dict.fromkeys(TRUE, "1") | dict.fromkeys(FALSE, "0"))
        keys = keys.cast(pl.Float64, strict=False)
        table = {float(value): float(number) for number, value in enumerate(known)}  # type: ignore[misc]
    found = keys.replace_strict(table, default=None, return_dtype=pl.Float64)
    if column.count() and not found.count():
        raise UserError(message.format(", ".join(map(repr, known[:5]))))
    return found.fill_null(np.nan)
