"""The prepared data of a run, one Parquet file per purpose.

Files of a run:
    users.parquet, items.parquet    original ids, by row
    item_columns.parquet            the columns of the item table as they are, by row of items.parquet, for rewards and
                                    rules by name; no model is fitted on it
    train.parquet                   what models may be fitted on
    training_logs.parquet           the same with original ids: user_id, item_id and, if known, timestamp
    validation.parquet              from the end of training up to the test target; `target` marks the target
                                    (of all tables, `basket` and `days` where a case is a whole basket)
    test.parquet                    the test targets; no other file changes with them
    later.parquet                   what is after that, under a split in time
    validation_days.parquet, test_days.parquet
                                    the time of each target, for rewards that ask for it; where a case is no basket
    impressions.parquet             before a split in time; under leave-one-out, up to the last training interaction
    shown_later.parquet             user, item, clicked, timestamp; under a split in time, what was shown between the
                                    validation target and the test. Lists are judged by it
    rejects.parquet, summary.json   rejected rows; counts
"""

from __future__ import annotations

import json
import mmap
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.data.columns import (
    BASKET,
    CLICKED,
    CLICKED_AT,
    DAYS,
    HISTORY_LENGTH,
    HISTORY_UNTIL,
    ITEM,
    ITEM_ID,
    POSITION,
    TIMESTAMP,
    USER,
    USER_ID,
)
from adagrpo.data.dataset import Dataset
from adagrpo.data.logs.log_fields import UNITS
from adagrpo.data.splits import Split, check_leakage, keyed_uniforms
from adagrpo.types import Cases, Ragged


@dataclass(frozen=True)
class MappedRagged(Ragged):
    """Training sequences in a file, read in batches by `pread`."""

    pages: mmap.mmap
    file: IO[bytes]

    def parts(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int32]:
        """See `Ragged.parts`."""
        if not hasattr(os, "pread"):  # on Windows
            return super().parts(starts, lengths)
        descriptor, size = self.file.fileno(), self.values.itemsize
        wanted = zip(starts.tolist(), lengths.tolist(), strict=True)
        return np.frombuffer(b"".join(os.pread(descriptor, size * n, size * start) for start, n in wanted), np.int32)

    def release(self) -> None:
        """Drop the mapped pages from memory."""
        if hasattr(self.pages, "madvise"):  # not on Windows
            self.pages.madvise(mmap.MADV_DONTNEED)


def mapped_column(path: Path, name: str, rows: int) -> tuple[NDArray[np.int32], mmap.mmap, IO[bytes]] | None:
    """Copy an integer column without nulls to a temporary file; None if that fails."""
    try:
        file = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115  # the caller closes it
        for first in range(0, rows, _ROWS):
            part = pl.scan_parquet(path).select(name).slice(first, _ROWS).collect()[name]
            file.write(part.to_numpy().astype(np.int32, copy=False).data)
        file.flush()
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError:  # a read-only folder, a full disk
        return None
    return np.frombuffer(pages, np.int32), pages, file


TARGET = "target"
TRAINING_LOGS, ITEM_COLUMNS = "training_logs.parquet", "item_columns.parquet"
DAYS_OF = {
    "validation": "validation_days.parquet",
    "test": "test_days.parquet",
    "impressions": "impressions_days.parquet",
}
SHOWN_LATER = "shown_later.parquet"
_ROWS = 2**22  # of a table that are read at a time
_HELD = 2**24  # interactions up to which training sequences are in memory


def write_prepared(dataset: Dataset, split: Split, directory: Path) -> None:
    """Write a split data set, reproducibly; ValueError if a target lies within its own history."""
    check_leakage(split)
    directory.mkdir(parents=True, exist_ok=True)
    table = dataset.interactions.select(USER, ITEM, POSITION, *_basket_columns(dataset.interactions.columns))
    users, positions = table[USER].to_numpy(), table[POSITION].to_numpy()
    validation, test = split.validation_positions, split.test_positions
    validation_end, test_end = split.target_ends
    lengths = np.where(test >= 0, test, np.where(validation >= 0, validation_end, split.train_lengths))  # (U,)

    def of_rows(values: NDArray[np.int64]) -> NDArray[np.int32]:
        return np.asarray(values.astype(np.int32)[users])

    trained = positions < of_rows(split.train_lengths)
    until_test = positions < of_rows(lengths)
    tested = (test >= 0)[users] & (positions >= of_rows(test)) & (positions < of_rows(test_end))
    dataset.users.write_parquet(directory / "users.parquet")
    dataset.items.write_parquet(directory / "items.parquet")
    table.filter(trained).write_parquet(directory / "train.parquet")
    user_ids = dataset.users.lazy().select(USER_ID).with_row_index(USER).cast({USER: pl.Int32})
    logged = dataset.interactions.lazy().filter(pl.Series(trained))
    for ids, key in ((user_ids, USER), (dataset.items.lazy().select(ITEM, ITEM_ID), ITEM)):
        logged = logged.join(ids, on=key, how="left", maintain_order="left")
    at = [TIMESTAMP] if TIMESTAMP in dataset.interactions.columns else []
    logged.select(USER_ID, ITEM_ID, *at).sink_parquet(directory / TRAINING_LOGS, row_group_size=_ROWS)
    validated = (validation >= 0)[users] & (positions >= of_rows(validation)) & (positions < of_rows(validation_end))
    marked = table.with_columns(pl.Series(TARGET, validated))
    marked.filter(until_test & ~trained).write_parquet(directory / "validation.parquet")
    table.filter(tested).write_parquet(directory / "test.parquet")
    unit = dataset.understood.get("time", {}).get("unit")
    if unit is not None and TIMESTAMP in dataset.interactions.columns and BASKET not in table.columns:
        days = dataset.interactions.select((pl.col(TIMESTAMP) / (UNITS[unit] * 86_400)).alias(DAYS))
        for name, targets in (("validation", validated), ("test", tested)):
            days.filter(targets).write_parquet(directory / DAYS_OF[name])
    summary, later = dict(dataset.summary), table.filter(~until_test & ~tested)
    later.write_parquet(directory / "later.parquet")
    if len(later):
        summary["later_interactions"] = len(later)
    if dataset.impressions is not None:
        shown = dataset.impressions
        if split.trained_before is None:
            trained_of = split.train_lengths[shown[USER].to_numpy()]
            # At the time of the first held-out interaction is too late: it may be that very interaction.
            seen = (shown[HISTORY_LENGTH].to_numpy() < trained_of) & (shown[HISTORY_UNTIL].to_numpy() <= trained_of)
        elif np.isinf(split.trained_before):
            seen = np.ones(len(shown), dtype=np.bool_)
        else:
            times = [name for name in (TIMESTAMP, CLICKED_AT) if name in shown.columns]
            seen = shown.select(pl.max_horizontal(times)).to_series().to_numpy() < split.trained_before
        kept = shown.filter(seen).drop(HISTORY_UNTIL, TIMESTAMP, CLICKED_AT, strict=False)
        kept.write_parquet(directory / "impressions.parquet")
        if unit is not None and TIMESTAMP in shown.columns:
            when = shown.filter(seen).select((pl.col(TIMESTAMP) / (UNITS[unit] * 86_400)).alias(DAYS))
            when.write_parquet(directory / DAYS_OF["impressions"])
        summary |= {"impressions": int(seen.sum()), "impressions_later": int((~seen).sum())}
        if split.trained_before is not None and split.tested_from is not None:  # of items not had before
            of_shown = shown[USER].to_numpy()
            known = (validation >= 0)[of_shown] & (shown[HISTORY_LENGTH].to_numpy() >= validation_end[of_shown])
            later = shown.filter(known & (shown[TIMESTAMP].to_numpy() < split.tested_from))
            had = table.filter(pl.col(POSITION) < pl.Series(validation_end[users])).select(USER, ITEM)
            fresh = later.with_columns(pl.col(CLICKED).cast(pl.Boolean)).join(had, on=[USER, ITEM], how="anti")
            once = fresh.group_by(USER, ITEM).agg(pl.col(CLICKED).any(), pl.col(TIMESTAMP).min())
            once.sort(USER, ITEM).write_parquet(directory / SHOWN_LATER)
    dataset.rejects.write_parquet(directory / "rejects.parquet")
    summary |= {
        "users": len(dataset.users),
        "items": len(dataset.items),
        "interactions": len(table),
        "training_interactions": int(trained.sum()),
        "validation_cases": int((split.validation_positions >= 0).sum()),
        "test_cases": int((split.test_positions >= 0).sum()),
    }
    if split.trained_before is not None:  # of validation: what is prepared says nothing of the test targets
        items, known = table[ITEM].to_numpy(), np.zeros(len(dataset.items), dtype=np.bool_)
        known[items[trained]] = True
        new = "validation_items_that_are_new" if BASKET in table.columns else "validation_cases_of_new_items"
        summary[new] = int((~known[items[validated]]).sum())
    content = summary | ({"understood": dataset.understood} if dataset.understood else {})
    (directory / "summary.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def load_training(directory: Path) -> Ragged:
    """Load the training sequences, one row per user; long logs stay on disk."""
    path = directory / "train.parquet"  # written by user and position
    rows, counts = _count(path), np.zeros(_count(directory / "users.parquet"), dtype=np.int64)
    for first in range(0, rows, _ROWS):  # of a long log a whole column takes as much as the result
        part = pl.scan_parquet(path).select(USER).slice(first, _ROWS).collect()[USER].to_numpy()
        counts[part[0] : part[-1] + 1] += np.bincount(part - part[0])
    mapped = mapped_column(path, ITEM, rows) if rows > _HELD else None
    if mapped is not None:
        known = _of_baskets(pl.read_parquet(path, columns=_basket_columns(pl.read_parquet_schema(path))))
        made = MappedRagged(mapped[0], Ragged.of(mapped[0], counts).offsets, *mapped[1:])
        return replace(made, **known)  # type: ignore[arg-type]
    table = pl.read_parquet(path, columns=[ITEM, *_basket_columns(pl.read_parquet_schema(path))])
    values = table[ITEM].to_numpy(writable=True)
    return replace(Ragged.of(values.astype(np.int32, copy=False), counts), **_of_baskets(table))


def _basket_columns(columns: Iterable[str]) -> list[str]:
    return [name for name in (BASKET, DAYS) if name in columns]


def _of_baskets(table: pl.DataFrame) -> dict[str, NDArray[Any]]:
    types = {BASKET: ("baskets", np.int32), DAYS: ("days", np.float64)}
    known = _basket_columns(table.columns)
    return {types[name][0]: table[name].to_numpy().astype(types[name][1], copy=False) for name in known}


def load_until_test(directory: Path) -> Ragged:
    """Load interactions to each user's test target."""
    return _with(directory, "validation.parquet", "test.parquet")


def load_whole(directory: Path) -> Ragged:
    """Load all interactions of each user."""
    return _with(directory, "validation.parquet", "test.parquet", "later.parquet")


def _with(directory: Path, *names: str) -> Ragged:
    training = load_training(directory)
    tables = [pl.read_parquet(directory / name) for name in names]
    columns = [USER, ITEM, POSITION, *_basket_columns(tables[0].columns)]
    later = pl.concat([table.select(columns) for table in tables]).sort(USER, POSITION)
    # few rows: a training sequence is all that comes before them
    users = later[USER].to_numpy()
    ends, added = training.offsets[users + 1], _of_baskets(later)
    values = np.insert(training.values, ends, later[ITEM].to_numpy())
    made = Ragged.of(values, training.lengths + np.bincount(users, minlength=len(training)))
    return replace(made, **{name: np.insert(getattr(training, name), ends, added[name]) for name in added})


def load_cases(directory: Path, split: Literal["validation", "test"] | str) -> Cases:
    """Load a split's cases, by user; test histories include validation, and only `test` reads test.parquet."""
    later = pl.read_parquet(directory / "validation.parquet")
    if split == "validation":
        targets = later.filter(TARGET)
    elif split == "test":
        targets = pl.read_parquet(directory / "test.parquet")
    else:
        raise ValueError(f"split must be validation or test, got {split}")
    # of a long log few users may be evaluated, see `for_some_users`: nothing of the others is kept
    evaluated = pl.col(USER).is_in(targets[USER].unique().implode())
    seen = pl.scan_parquet(directory / "train.parquet").filter(evaluated).collect()
    if split == "test":
        seen = pl.concat([seen, later.filter(evaluated).drop(TARGET)]).sort(USER, POSITION)
    owners, sizes = np.unique(targets[USER].to_numpy(), return_counts=True)
    starts = np.cumsum(sizes) - sizes  # targets are by user and position
    target_positions = np.full(_count(directory / "users.parquet"), -1)
    target_positions[owners] = targets[POSITION].to_numpy()[starts]
    users, positions = seen[USER].to_numpy(), seen[POSITION].to_numpy()
    read = positions < target_positions[users]
    counts = np.bincount(users[read], minlength=len(target_positions))[owners]
    histories = Ragged.of(seen[ITEM].to_numpy()[read].astype(np.int32), counts)
    items = targets[ITEM].to_numpy().astype(np.int32)
    if BASKET not in targets.columns:
        path = directory / DAYS_OF[split]
        times = pl.read_parquet(path)[DAYS].to_numpy().astype(np.float64) if path.is_file() else None
        return Cases(owners.astype(np.int32), histories, items, days=times)
    histories = replace(histories, **_of_baskets(seen.filter(pl.Series(read))))
    drawn = starts + drawn_positions(owners, sizes)
    days = targets[DAYS].to_numpy()[starts].astype(np.float64) if DAYS in targets.columns else None
    return Cases(owners.astype(np.int32), histories, items[drawn], Ragged.of(items, sizes), days)


# users and sizes (N,) -> (N,)
def drawn_positions(users: NDArray[np.integer], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Draw an item of each user's basket, by its position."""
    return np.asarray((keyed_uniforms(0, users.astype(np.int64)) * sizes).astype(np.int64))


def load_items(directory: Path) -> pl.DataFrame:
    """Load item, item_id, text, attributes and any groups."""
    return pl.read_parquet(directory / "items.parquet")


def write_item_columns(columns: pl.DataFrame, ids: pl.Series, directory: Path) -> None:
    """Write the columns of `read_columns` in the order of the (V,) ids; null without a row."""
    items = pl.DataFrame({ITEM_ID: ids.cast(pl.String)})
    id_column, *names = columns.columns
    joined = items.join(columns, left_on=ITEM_ID, right_on=id_column, how="left", maintain_order="left")
    joined.select(names).write_parquet(directory / ITEM_COLUMNS)


def stack_columns(columns: pl.DataFrame, added: pl.DataFrame) -> pl.DataFrame:
    """Append rows of another item table; missing columns are null, differing types text."""
    unlike = [name for name in columns.columns if name in added and added[name].dtype != columns[name].dtype]
    parts = [table.with_columns(pl.col(unlike).cast(pl.String)) for table in (columns, added)]
    return pl.concat(parts, how="diagonal").select(columns.columns)


def load_item_ids(directory: Path) -> pl.Series:
    """Load the (V,) original item ids."""
    return pl.read_parquet(directory / "items.parquet", columns=[ITEM_ID])[ITEM_ID]


def load_user_ids(directory: Path) -> pl.Series:
    """Load the (U,) original user ids."""
    return pl.read_parquet(directory / "users.parquet", columns=[USER_ID])[USER_ID]


def load_impressions(directory: Path) -> pl.DataFrame | None:
    """Load any impressions: user, item, history_length, clicked [, slot, propensity]."""
    path = directory / "impressions.parquet"
    return pl.read_parquet(path).cast({CLICKED: pl.Boolean}) if path.is_file() else None


def _count(path: Path) -> int:
    return int(pl.scan_parquet(path).select(pl.len()).collect().item())
