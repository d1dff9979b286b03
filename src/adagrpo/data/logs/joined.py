"""Add impressions from other files to a log, in the log's types and units."""

from __future__ import annotations

import dataclasses

import polars as pl

from adagrpo.data.columns import CLICKED_AT, ITEM_ID, TIMESTAMP, USER_ID
from adagrpo.data.logs.interactions import Logs
from adagrpo.data.logs.times import UNITS
from adagrpo.errors import UserError


def with_impressions(logs: Logs, shown: Logs, source: str) -> Logs:
    """Add impressions from other files to a log; clicks do not become interactions.

    Args:
        shown: from `read_logs`, with the same users and items.
        source: the recipe key of `shown`, for errors.

    Raises:
        UserError: missing clicks or times, or times that cannot be compared.
    """
    if shown.impressions is None:
        raise UserError(f"{source}: no column says what was clicked; name it, {source}.columns.clicked=NAME")
    if TIMESTAMP not in logs.interactions.columns or TIMESTAMP not in shown.impressions.columns:
        raise UserError(
            f"{source}: what was shown is put beside the interactions by time; name the columns of times,"
            f" data.columns.timestamp and {source}.columns.timestamp"
        )
    table = shown.impressions.with_columns(
        *(_like(shown.impressions[name], logs.interactions[name].dtype) for name in (USER_ID, ITEM_ID)),
        *(
            _in_unit(shown.impressions[name], logs, shown, source)
            for name in (TIMESTAMP, CLICKED_AT)
            if name in shown.impressions.columns
        ),
    )
    own = [] if logs.impressions is None else [logs.impressions]
    understood = logs.understood | {"files": [*logs.understood["files"], *shown.understood["files"]]}
    return dataclasses.replace(
        logs,
        impressions=pl.concat([*own, table], how="diagonal_relaxed"),
        rejects=pl.concat([logs.rejects, shown.rejects]),
        rows_read=logs.rows_read + shown.rows_read,
        rows_filtered=logs.rows_filtered + shown.rows_filtered,
        understood=understood,
    )


def _like(ids: pl.Series, dtype: pl.DataType) -> pl.Series:
    """Cast ids to the log's type.

    >>> _like(pl.Series(["7", "007", "a"]), pl.Int64()).to_list()
    [7, None, None]
    """
    there = ids.cast(dtype, strict=False)
    return pl.select(pl.when(there.cast(ids.dtype) == ids).then(there).alias(ids.name)).to_series()


def _in_unit(times: pl.Series, logs: Logs, shown: Logs, source: str) -> pl.Series:
    units = [entry.understood.get("time", {}).get("unit") for entry in (logs, shown)]
    if (units[0] is None) != (units[1] is None):
        described = [f"are {unit} since 1970" if unit else "are of a unit that is not known" for unit in units]
        raise UserError(
            f"{source}: the times of the logs {described[0]}, and these {described[1]}; write both in one unit"
        )
    whole = logs.interactions[TIMESTAMP].dtype.is_integer()
    if units[0] == units[1] or units[0] is None:
        return times.floor().cast(pl.Int64) if whole else times
    factor = UNITS[units[0]] / UNITS[units[1]]
    if factor >= 1 and times.dtype.is_integer():
        return times * int(factor)
    scaled = times // round(1 / factor) if factor < 1 and whole else times * factor
    return scaled.floor().cast(pl.Int64) if whole else scaled
