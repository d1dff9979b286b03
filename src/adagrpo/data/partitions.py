"""What one worker does of `prepare`: read a part of the logs, or put the interactions of some users in order.

    part of a log -> its good rows, sorted by a hash of the user
    a range of hashes -> its users' interactions and impressions, with numbers of its own
    the same range -> the numbers that all have, without what the k-core dropped

Every function writes files whose names its task decides, whole or not at all, and gives back counts. What the user's
rows are to each other, such as their order, repeats and histories, is known within one range; what all users have in
common is worked out between the steps, by `adagrpo.data.partitioned`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from adagrpo.data.columns import ITEM, ITEM_ID, POSITION, TIMESTAMP, USER, USER_ID
from adagrpo.data.dataset import codes, count_duplicates, with_history
from adagrpo.data.logs.cells import integers_if_all
from adagrpo.data.logs.interactions import FILE, ROW, Reading, keep
from adagrpo.data.logs.log_fields import ColumnMapping, LogOptions, fields_of
from adagrpo.storage.writing import written_beside

__all__ = ["BUCKETS", "CHOSEN", "Partitioning", "read_table", "write_table"]

BUCKETS = 256  # hashes of users; a range of them is put in order by one worker
BUCKET, CHOSEN = "bucket", "chosen"


def write_table(table: pl.DataFrame, path: Path, holder: str) -> None:
    """Write a table as it lies in memory, so that a range of its rows can be read alone."""
    with written_beside(path, holder) as place:
        table.write_ipc(place, compression="uncompressed")


def read_table(path: Path, first: int = 0, rows: int | None = None) -> pl.DataFrame:
    """A table of `write_table`, or some of its rows."""
    return pl.scan_ipc(path).slice(first, rows).collect()


@dataclass(frozen=True)
class Partitioning:
    """The logs, how they are read, and where the workers' files are."""

    paths: tuple[Path, ...]
    columns: ColumnMapping
    options: LogOptions
    folder: Path
    holder: str  # token of the process that holds the lock of the folder

    def reader(self, kind: Literal["number", "ISO 8601"] | None) -> Reading:
        """What reads a part, where the log's first time was written so; of repeats the part knows nothing."""
        fields = fields_of(self.paths, self.columns, self.options)
        times = fields[TIMESTAMP].times if TIMESTAMP in fields else None
        if times is not None:
            times.kind = kind
        reader = Reading(fields, self.options.refuse, self.options.max_bad_rows)
        reader.paths = list(self.paths)
        return reader

    def file(self, name: str, *numbers: int) -> Path:
        """Where a file of the workers is."""
        return self.folder / ("-".join([name, *(f"{number:06d}" for number in numbers)]) + ".arrow")

    def table(self, name: str, *numbers: int) -> pl.DataFrame:
        """A file of the workers."""
        return read_table(self.file(name, *numbers))

    def write(self, table: pl.DataFrame, name: str, *numbers: int) -> None:
        """Write such a file."""
        write_table(table, self.file(name, *numbers), self.holder)

    def worker(self) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """The function of a task of any of the three steps."""
        index: list[Any] = []

        def carry_out(task: dict[str, Any]) -> dict[str, Any]:
            if task["step"] == "read":
                return self._read(task)
            if task["step"] == "finish":
                return self._finish(task)
            if not index:
                index.extend(json.loads((self.folder / "chunks.json").read_text(encoding="utf-8")))
            return self._order(task, index)

        return carry_out

    def _read(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Good rows of a part of a log, by bucket; `chunks` says where each bucket begins."""
        reader = self.reader(task["kind"])
        rows = None if task["rows"] is None else (task["rows"][0], task["rows"][1])
        path = self.paths[task["file"]]
        chunks: list[list[int]] = []  # of each, where the rows of each bucket begin
        integers = {USER_ID: True, ITEM_ID: True}
        for number, table in enumerate(reader.read_part(path, task["file"], rows, self.options.max_expansion)):
            for name in integers:
                integers[name] &= integers_if_all(table[name]).dtype == pl.Int64
            bucket = (table[USER_ID].cast(pl.String).hash() % BUCKETS).cast(pl.UInt16).alias(BUCKET)
            counts = np.bincount(bucket.to_numpy(), minlength=BUCKETS)
            ordered = table.with_columns(bucket).sort(BUCKET, maintain_order=True).drop(BUCKET)
            self.write(ordered, "rows", task["number"], number)
            chunks.append([0, *np.cumsum(counts).tolist()])
        if reader.bad:
            self.write(pl.concat(reader.bad), "bad", task["number"])
        times = reader.fields[TIMESTAMP].times if TIMESTAMP in reader.fields else None
        said = {"number": task["number"], "rows": reader.rows, "bad": reader.count, "chunks": chunks}
        return said | {"integers": integers, "naive": 0 if times is None else times.naive}

    def _order(self, task: Mapping[str, Any], index: list[Any]) -> dict[str, Any]:
        """The rows of a range of buckets in the order of the files, cleaned, then each user's by time."""
        (first, last), number = task["buckets"], task["number"]
        types: Any = dict(self.table("schema").schema)
        parts: list[pl.DataFrame] = []
        for read, chunk, offsets in index:
            rows = read_table(self.file("rows", read, chunk), offsets[first], offsets[last] - offsets[first])
            parts.append(rows.cast(types))
        table, repeats = pl.concat(parts), 0
        if self.options.refuse.repeats:
            distinct = table.select(pl.struct(pl.exclude(FILE, ROW)).is_first_distinct()).to_series()
            self.write(table.filter(~distinct).select(FILE, ROW), "repeats", number)
            repeats = len(table) - int(distinct.sum())
            table = table.filter(distinct).drop(FILE, ROW)
        kept = keep(table, self.columns, self.options)
        said: dict[str, Any] = {"number": number, "rows": len(table), "repeats": repeats, "filtered": kept.filtered}
        said |= {"dropped": kept.dropped, "kept": kept.rows, "interactions": len(kept.interactions)}
        times = table[TIMESTAMP] if TIMESTAMP in table.columns and len(table) else None
        said |= {"low": None if times is None else times.min(), "high": None if times is None else times.max()}
        self._number(kept.interactions, kept.impressions, number)
        return said | {"impressions": None if kept.impressions is None else len(kept.impressions)}

    def _number(self, chosen: pl.DataFrame, shown: pl.DataFrame | None, number: int) -> None:
        """Write users and items of a range, and its rows by their places among them."""
        users, bought = chosen[USER_ID].unique().sort(), chosen[ITEM_ID].unique()
        items = bought if shown is None else pl.concat([bought, shown[ITEM_ID]]).unique(maintain_order=True)
        self.write(pl.DataFrame({USER_ID: users}), "users", number)
        self.write(pl.DataFrame({ITEM_ID: items, CHOSEN: items.is_in(bought.implode())}), "items", number)
        self.write(_by_place(chosen, users, items).sort(USER, _time(chosen), maintain_order=True), "chosen", number)
        if shown is not None:
            self.write(_by_place(shown, users, items).drop_nulls(USER), "shown", number)

    def _finish(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """What is left of a range, with the numbers that `users-to` and `items-to` have: -1 for what is dropped."""
        number = task["number"]
        users, items = (self.table(f"{name}-to", number)["to"] for name in ("users", "items"))
        chosen = _renumbered(self.table("chosen", number), items, users)
        time = _time(chosen)
        said = {"number": number, "rows": len(chosen), "duplicates": count_duplicates(chosen, time), "shown": 0}
        if task["impressions"]:
            shown = _renumbered(self.table("shown", number), items, users)
            said["shown"] = len(shown)
            if len(chosen):
                known = with_history(shown, chosen, time)
                self.write(known.with_columns(users.gather(known[USER]).alias(USER)), "known", number)
        self.write(chosen.with_columns(users.gather(chosen[USER]).alias(USER)), "final", number)
        return said


def _time(table: pl.DataFrame) -> str:
    return TIMESTAMP if TIMESTAMP in table.columns else POSITION


def _by_place(table: pl.DataFrame, users: pl.Series, items: pl.Series) -> pl.DataFrame:
    places = (codes(table[USER_ID], users).alias(USER), codes(table[ITEM_ID], items).alias(ITEM))
    return table.drop(USER_ID, ITEM_ID).with_columns(places)


def _renumbered(table: pl.DataFrame, items: pl.Series, users: pl.Series) -> pl.DataFrame:
    """The rows of users and items that are left, with the final numbers of the items."""
    numbered = table.with_columns(items.gather(table[ITEM]).alias(ITEM))
    return numbered.filter((numbered[ITEM] >= 0) & (users.gather(numbered[USER]) >= 0))
