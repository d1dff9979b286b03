"""The rows that a refresh takes in: what of newer logs is new, and what is said of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from adagrpo.data.columns import BASKET, ITEM_ID, TIMESTAMP, USER, USER_ID
from adagrpo.data.logs.interactions import Logs, Refusals, with_impressions
from adagrpo.data.logs.log_fields import UNITS, moment
from adagrpo.data.logs.question import latest_time
from adagrpo.data.prepared import TRAINING_LOGS
from adagrpo.errors import UserError, first_of
from adagrpo.pipeline.directory import REFRESH, RunDirectory
from adagrpo.pipeline.stages.prepare import LogSource, log_source
from adagrpo.readers.formats import columns_of

ROWS = "rows.parquet"  # of all logs so far, before data.min_...: user_id, item_id, timestamp [, basket]
SHOWN = "shown.parquet"  # and what was shown: user_id, item_id, timestamp, clicked [, slot ...]
KEYS = [USER_ID, ITEM_ID, TIMESTAMP]
WEEKS = 4  # before a day without rows, in most of which the day of its week has rows if one was dropped


class NewRows(NamedTuple):
    """All rows so far, the new ones last, and what a refresh says of those."""

    rows: pl.DataFrame  # user_id, item_id, timestamp [, basket]
    shown: pl.DataFrame | None  # user_id, item_id, timestamp, clicked [, slot ...], where the run knows it
    unit: str | None  # of the times
    about: dict[str, Any]


def of_rows(about: Mapping[str, Any]) -> list[str]:
    """Return what a refresh says of its rows."""
    rows, days = about["rows"], about["dropped_days"]
    said = [
        f"{about['understood']}: {rows['new']:,} rows are new, from {about['first']} to {about['last']}, with"
        f" {about['new_users']:,} new users and {about['new_items']:,} new items"
    ]
    said += [f"{rows['shown']:,} impressions are new"] if rows.get("shown") else []
    said += [f"{rows['repeated']:,} rows were known"] if rows["repeated"] else []
    said += [f"{rows['late']:,} rows are from before {about['known_to']} and were not known"] if rows["late"] else []
    if rows["duplicates"]:
        said.append(f"{rows['duplicates']:,} rows repeat user, item and time of another, and count again")
    if rows["future"]:
        said.append(f"{rows['future']:,} rows lie in the future, the last at {about['last_future']}, and are left out")
    return [*said, *([f"no row is from {first_of(days)}, and such days have rows"] if days else [])]


def with_new_rows(run: RunDirectory, logs: Sequence[Path], path: Path, since: Any = None) -> NewRows:
    """Return all rows, those of `logs` behind those of `path`; with `since`, later ones of `path` are new too."""
    known = pl.read_parquet(path)
    if TIMESTAMP not in known.columns:
        raise UserError(f"{REFRESH}: the logs of {run.called} have no times, so nothing says which rows are newer")
    source, options = log_source(run), run.config.data
    table = source.read_items() if source.items is not None and source.items.is_file() else None
    refuse = source.refusals(table)
    named = [shown.options.columns for shown in source.shown]
    marks = [{one.item, one.clicked} for one in named if one.clicked is not None]
    of_shown = [path for path in logs if any(mark <= {*columns_of(path)} for mark in marks)]
    if len(of_shown) == len(logs):
        raise UserError(f"{logs[0]}: says what was shown; give the orders of the same time too")
    read = source._replace(logs=[path for path in logs if path not in of_shown]).read_logs(refuse)
    unit = run.content("prepare", "summary.json").get("understood", {}).get("time", {}).get("unit")
    given = read.understood.get("time", {}).get("unit")
    if given != unit and None not in (given, unit):
        raise UserError(
            f"{logs[0]}: its times are in {given}, and those of {run.called} in {unit}; give both in {unit}"
        )
    if path.name == TRAINING_LOGS and options.split.baskets and options.columns.basket is not None:
        # of a run's own logs the order ids are not kept, only which lines are of one order
        orders = pl.read_parquet(path.with_name("train.parquet"), columns=[USER, BASKET])
        ids = orders.select(pl.format("order {} of user {}", BASKET, USER))
        known = known.with_columns(ids.to_series().alias(BASKET))
    rows = read.interactions.select([name for name in known.columns if name in read.interactions.columns])
    for name in (USER_ID, ITEM_ID):
        given_ids = rows.get_column(name)
        typed = given_ids.cast(known.schema[name], strict=False)
        other = typed.is_null()
        if given_ids.dtype == pl.String:
            other |= typed.cast(pl.String) != given_ids  # 0253 is not the item 253
        if len(wrong := given_ids.filter(other)):
            raise UserError(f"{logs[0]}: {name} {wrong[0]!r}: the ids of {run.called} are whole numbers")
        rows = rows.with_columns(typed)
    if BASKET in rows.columns:
        last_line = pl.col(TIMESTAMP).max().over(USER_ID, BASKET)  # an order is known at the time of its last line
        rows = rows.with_columns(pl.col(BASKET).cast(pl.String), last_line)
    if rows.schema[TIMESTAMP] != known.schema[TIMESTAMP]:
        rows, known = (one.with_columns(pl.col(TIMESTAMP).cast(pl.Float64)) for one in (rows, known))
    if since is not None:
        again, known = known.filter(pl.col(TIMESTAMP) > since), known.filter(pl.col(TIMESTAMP) <= since)
        rows = pl.concat([again.select(rows.columns), rows.join(again, on=KEYS, how="anti", maintain_order="left")])
    users, known_users = rows[USER_ID].unique(), known[USER_ID].unique()
    if not users.is_in(known_users.implode()).any():
        raise UserError(
            f"{logs[0]}: none of its {len(users):,} users is one of the {len(known_users):,} of {run.called}; are ids"
            f" such as {users.sort()[0]!r} of the same kind as {known_users.sort()[0]!r}? ({options.columns.user})"
        )
    latest: Any = known[TIMESTAMP].max()
    bound = np.inf if unit is None else max(latest_time(time.time(), unit), latest)
    future, rows = rows.filter(pl.col(TIMESTAMP) > bound)[TIMESTAMP], rows.filter(pl.col(TIMESTAMP) <= bound)
    called, ends = (str(logs[0]), "ends") if len(logs) == 1 else (f"{len(logs)} logs", "end")
    if not len(rows):
        raise UserError(f"{called}: all rows lie in the future, the last at {time_said(future.max(), unit)}")
    repeated = len(known.join(rows, on=KEYS, how="semi"))
    fresh = rows.join(known, on=KEYS, how="anti", maintain_order="left")
    newer = fresh.filter(pl.col(TIMESTAMP) > latest)
    to = time_said(latest, unit)
    if not len(newer) and repeated:
        raise UserError(
            f"{called}: {ends} at {time_said(rows[TIMESTAMP].max(), unit)}, and {run.called} has all to {to}: nothing"
            " is new; give a log that ends later"
        )
    if not len(newer):
        raise UserError(
            f"{called}: all {len(rows):,} rows are from before {to}, up to where {run.called} has them; older rows"
            " are for `adagrpo decide` with the whole log"
        )
    times = newer[TIMESTAMP]
    counts = {"new": len(newer), "late": len(fresh) - len(newer), "repeated": len(rows) - len(fresh)}
    counts |= {"duplicates": len(fresh) - fresh.select(KEYS).n_unique(), "future": len(future)}
    about = {
        "understood": "a longer log" if 2 * repeated >= len(known) else "new rows",
        "rows": counts,
        "new_users": int((~newer[USER_ID].unique().is_in(known_users.implode())).sum()),
        "new_items": int((~newer[ITEM_ID].unique().is_in(known[ITEM_ID].unique().implode())).sum()),
        **{"first": time_said(times.min(), unit), "last": time_said(times.max(), unit), "known_to": to},
        "dropped_days": _dropped_days(known[TIMESTAMP], times, unit),
        "last_future": time_said(future.max(), unit) if len(future) else None,
    }
    shown = _with_new_shown(source, read, refuse, of_shown, path.with_name(SHOWN), fresh)
    if shown is not None:
        counts["shown"] = len(shown.filter(pl.col(TIMESTAMP) > latest))
    return NewRows(pl.concat([known, fresh.select(known.columns)]), shown, unit, about)


def _with_new_shown(
    source: LogSource, read: Logs, refuse: Refusals, paths: Sequence[Path], known: Path, rows: pl.DataFrame
) -> pl.DataFrame | None:
    """Return all impressions so far: those of `known`, or else of the run's own files, and of new files."""

    def impressions(logs: Logs, files: Sequence[Path]) -> pl.DataFrame | None:
        for shown in source.shown if files else []:
            logs = with_impressions(logs, shown._replace(files=files).read(source.options, refuse), shown.name)
        if logs.impressions is None:
            return None
        typed = (pl.col(name).cast(rows.schema[name], strict=False) for name in (USER_ID, ITEM_ID))
        return logs.impressions.with_columns(*typed).drop_nulls(KEYS)

    new = impressions(read, paths)
    before: pl.DataFrame | None
    if known.is_file():
        before = pl.read_parquet(known)
    elif source.shown:
        before = impressions(read, source.shown[0].files)
    else:
        before = None if new is None else impressions(source.read_logs(refuse), [])
    if before is None or new is None:
        return before
    return pl.concat([before, new.join(before, on=KEYS, how="anti", maintain_order="left")], how="diagonal_relaxed")


def time_said(time: Any, unit: str | None) -> str:
    """Return a time of rows as text: a date, or the number where the unit is not known."""
    return f"{time:.15g}" if unit is None else moment(float(time), unit)


def _dropped_days(known: pl.Series, new: pl.Series, unit: str | None) -> list[str]:
    """Return new days without rows whose day of the week has rows in most weeks before."""
    if unit is None:
        return []
    before, after = ({*(times / (UNITS[unit] * 86_400)).floor().cast(pl.Int64)} for times in (known, new))
    there, first, dropped = before | after, min(before | after), []
    for day in range(max(before) + 1, max(after)):
        weeks = [day - 7 * week in there for week in range(1, WEEKS + 1) if day - 7 * week >= first]
        if day not in there and 2 * sum(weeks) > len(weeks):
            dropped.append(moment(86_400.0 * day, "seconds")[:10])
    return dropped
