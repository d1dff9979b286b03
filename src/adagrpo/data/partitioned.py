"""Logs to a data set, divided by user among workers: the one that `read_logs` and `build_dataset` make, to the bit.

A user's rows are put in order by one worker. Between the steps this process works out what all users have in common:
which ids are whole numbers, the k-core, and the numbers of users and items. It holds 8 bytes of each interaction for
the k-core, and at the end the numbered interactions; the text of the logs it never sees.

A row belongs to the worker of its user's hash. Which hash that is does not show in the result.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.data.columns import ITEM, ITEM_ID, TIMESTAMP, USER, USER_ID
from adagrpo.data.dataset import (
    Dataset,
    align,
    check_enough,
    codes,
    count_described,
    k_core_rows,
    listed_items,
    numbered_dataset,
)
from adagrpo.data.item_order import in_hash_order
from adagrpo.data.logs.chunks import CHUNK_ROWS
from adagrpo.data.logs.formats import kind_of, reading
from adagrpo.data.logs.interactions import check_any, rejects_of
from adagrpo.data.logs.log_fields import ColumnMapping, LogOptions
from adagrpo.data.logs.understood import file_format, time_format
from adagrpo.data.partitions import BUCKETS, CHOSEN, Partitioning
from adagrpo.executors import Executor, team
from adagrpo.storage.removal import remove
from adagrpo.storage.writing import TOKEN, temporary, write_file

__all__ = ["build_partitioned"]

RANGE_ROWS = 2**22  # of the logs, that a worker puts in order at a time, about; less where that leaves workers idle
RANGES_OF_A_WORKER = 4
REPEATS = "repeats an earlier row"

CarryOut = Callable[[Callable[[], Iterator[Any]]], Iterator[Any]]


def build_partitioned(
    paths: Sequence[Path],
    columns: ColumnMapping,
    options: LogOptions,
    items: pl.DataFrame | None,
    folder: Path,
    executor: Executor,
    *,
    min_user_interactions: int = 1,
    min_item_interactions: int = 1,
) -> Dataset:
    """Read logs and make their data set.

    Args:
        paths: as in `read_logs`. A text file is read by one worker, a Parquet file by as many as it has rows for.
        columns: their names.
        options: how they are read; their rows have an order.
        items: as in `build_dataset`.
        folder: for the files of the workers, which see it under the same path. They are removed at the end.
        executor: who works.
        min_user_interactions: as in `build_dataset`.
        min_item_interactions: as in `build_dataset`.

    Raises:
        UserError: as in `read_logs` and `build_dataset`.
        RuntimeError: machines of the executor hash text differently.
    """
    place = temporary(folder / "partitions")
    place.mkdir()
    try:
        work = Partitioning(tuple(path.resolve() for path in paths), columns, options, place.resolve(), TOKEN)
        with team(work.worker, executor) as carry_out:
            made = _Partitioned(work, list(paths), carry_out, executor.workers)
            return made.dataset(items, min_user_interactions, min_item_interactions)
    finally:
        remove(place, lambda name: True)


class _Partitioned:
    """The steps, and what is known after each."""

    def __init__(self, work: Partitioning, paths: list[Path], carry_out: CarryOut, workers: int) -> None:
        self.work, self.paths, self.carry_out, self.workers = work, paths, carry_out, workers
        self.most = work.options.max_bad_rows

    def dataset(self, table: pl.DataFrame | None, min_user: int, min_item: int) -> Dataset:
        """All steps."""
        self._read()
        self._order()
        catalogue, users, described = self._number(table, min_user, min_item)
        finished = self._each(_ranges(len(self.ranges), self.shown is not None))
        dropped = [one["dropped"] for one in self.ranges]
        interactions = sum(one["interactions"] for one in self.ranges)
        counts = {
            "rows_read": self.rows_read,
            "rows_rejected": len(self.rejects),
            "rows_filtered": sum(one["filtered"] for one in self.ranges),
            "interactions_dropped": interactions - sum(one["rows"] for one in finished),
            "exact_duplicates": sum(one["duplicates"] for one in finished),
        }
        if table is not None:
            counts["items_described"] = count_described(catalogue, described)
        if self.work.options.drop_duplicates:
            counts["exact_duplicates_dropped"] = sum(dropped)
        impressions = None
        if self.shown is not None:
            counts["impressions_dropped"] = self.shown - sum(one["shown"] for one in finished)
            impressions = self._gathered("known", [one["number"] for one in finished if one["rows"]])
        final = self._gathered("final", [one["number"] for one in finished])
        items = listed_items(catalogue, described)
        return numbered_dataset(users, items, final, impressions, self.rejects, counts, self._understood())

    def _each(self, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The results of a step, in the order of its tasks."""
        return sorted(self.carry_out(partial(iter, tasks)), key=lambda one: one["number"])

    def _read(self) -> None:
        """The first step: rows, by the hash of the user."""
        work = self.work
        self.kind = _kind_of_times(work)
        self.parts = list(_parts(work.paths, self.kind))
        self.read = self._each(self.parts)
        self.bad = [work.table("bad", number) for number in range(len(self.read)) if self.read[number]["bad"]]
        self.bad_rows = sum(one["bad"] for one in self.read)
        if self.bad_rows > self.most:
            rejects_of(self.bad, self.bad_rows, self.paths, self.most)
        chunks = [(one["number"], number) for one in self.read for number in range(len(one["chunks"]))]
        ids = {USER_ID: pl.String, ITEM_ID: pl.String}
        schemas = [pl.read_ipc_schema(work.file("rows", *chunk)) for chunk in chunks]
        empty = pl.concat([pl.DataFrame(schema={**one, **ids}) for one in schemas], how="vertical_relaxed")
        whole = {name: all(one["integers"][name] for one in self.read) for name in (USER_ID, ITEM_ID)}
        self.schema = empty.cast({name: pl.Int64 if whole[name] else pl.String for name in whole})
        work.write(self.schema, "schema")
        index = [[one["number"], number, at] for one in self.read for number, at in enumerate(one["chunks"])]
        write_file(work.folder / "chunks.json", json.dumps(index))
        self.sizes = np.diff(np.array([at for *_, at in index], dtype=np.int64), axis=1).sum(0)  # (BUCKETS,)

    def _order(self) -> None:
        """The second step: each user's rows in order."""
        work = self.work
        self.ranges = self._each(_bucket_ranges(self.sizes, RANGES_OF_A_WORKER * self.workers))
        repeats = sum(one["repeats"] for one in self.ranges)
        self.bad += [
            work.table("repeats", one["number"]).with_columns(pl.lit(REPEATS).alias("reason"))
            for one in self.ranges
            if one["repeats"]
        ]
        self.rejects = rejects_of(self.bad, self.bad_rows + repeats, self.paths, self.most)
        self.rows_read = sum(one["rows"] for one in self.ranges) + len(self.rejects)
        self.shown = None
        if self.ranges[0]["impressions"] is not None:
            self.shown = sum(one["impressions"] for one in self.ranges)
        filtered, kept, chosen = (
            sum(one[name] for one in self.ranges) for name in ("filtered", "kept", "interactions")
        )
        check_any(self.paths[0], self.rows_read, self.rejects, filtered, kept, chosen)

    def _number(
        self, table: pl.DataFrame | None, min_user: int, min_item: int
    ) -> tuple[pl.Series, pl.Series, pl.DataFrame]:
        """The items and users that are left, in the order of their numbers, which every range is told."""
        work, ranges = self.work, range(len(self.ranges))
        items = [work.table("items", number) for number in ranges]
        users = [work.table("users", number)[USER_ID] for number in ranges]
        every_user, every_item = pl.concat(users), pl.concat([one[ITEM_ID] for one in items]).unique()
        if every_user.n_unique() != len(every_user):
            raise RuntimeError("a user is in two partitions: the machines of the executor hash text differently")
        places = [codes(one[ITEM_ID], every_item).to_numpy() for one in items]
        ends = np.cumsum([0, *map(len, users)])
        if min_user > 1 or min_item > 1:
            users_left, items_left = self._k_core(places, ends, len(every_item), min_user, min_item)
        else:
            users_left = np.ones(len(every_user), dtype=np.bool_)
            items_left = np.zeros(len(every_item), dtype=np.bool_)
            for place, one in zip(places, items, strict=True):
                items_left[place[one[CHOSEN].to_numpy()]] = True
        check_enough(int(users_left.sum()), int(items_left.sum()), min_user, min_item)
        aligned, described = align(every_item, table)
        catalogue = in_hash_order(aligned.filter(pl.Series(items_left)))
        user_ids = every_user.filter(pl.Series(users_left)).sort()
        user_to, item_to = (
            codes(ids, known).fill_null(-1) for ids, known in ((every_user, user_ids), (aligned, catalogue))
        )
        for number in ranges:
            of_users = user_to[int(ends[number]) : int(ends[number + 1])]
            work.write(pl.DataFrame({"to": of_users}), "users-to", number)
            work.write(pl.DataFrame({"to": item_to.gather(places[number])}), "items-to", number)
        return catalogue, user_ids, described

    def _k_core(
        self, places: list[NDArray[np.int32]], ends: NDArray[np.int64], count: int, min_user: int, min_item: int
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which users and items are left."""
        files = [self.work.file("chosen", number) for number in range(len(places))]
        tables = [pl.scan_ipc(file).select(USER, ITEM).collect() for file in files]
        users = np.concatenate(
            [one[USER].to_numpy() + end.astype(np.int32) for one, end in zip(tables, ends, strict=False)]
        )
        items = np.concatenate([place[one[ITEM].to_numpy()] for place, one in zip(places, tables, strict=True)])
        rows = k_core_rows(users, items, min_user, min_item)
        users_left, items_left = np.zeros(ends[-1], dtype=np.bool_), np.zeros(count, dtype=np.bool_)
        users_left[users[rows]] = True
        items_left[items[rows]] = True
        return users_left, items_left

    def _gathered(self, name: str, numbers: Sequence[int]) -> pl.DataFrame:
        """A table of all ranges, by user."""
        return pl.concat([self.work.table(name, number) for number in numbers]).sort(USER, maintain_order=True)

    def _understood(self) -> dict[str, Any]:
        files = []
        for number, path in enumerate(self.paths):
            rows = sum(one["rows"] for one in self.read if self.parts[one["number"]]["file"] == number)
            files.append(file_format(path) | {"rows": rows})
        fields = self.work.reader(self.kind).fields
        field = fields.get(TIMESTAMP)
        times = None if field is None else field.times
        if field is None or times is None:
            return {"files": files}
        times.naive = sum(one["naive"] for one in self.read)
        bounds = [one[name] for one in self.ranges for name in ("low", "high") if one[name] is not None]
        table = pl.DataFrame({TIMESTAMP: pl.Series(bounds, dtype=self.schema[TIMESTAMP].dtype)})
        time = time_format(table, field.source, times)
        return {"files": files} | ({} if time is None else {"time": time})


def _kind_of_times(work: Partitioning) -> Literal["number", "ISO 8601"] | None:
    """How the times of the log are written: as the first one is; None where there are none."""
    reader = work.reader(None)
    reader.max_bad_rows = sys.maxsize  # whether there are too many is said later
    times = reader.fields[TIMESTAMP].times if TIMESTAMP in reader.fields else None
    for number, path in enumerate(work.paths if times is not None else ()):
        for _ in reader.read_part(path, number, None, work.options.max_expansion):
            if times is not None and times.kind is not None:
                return times.kind
    return None


def _parts(paths: Sequence[Path], kind: str | None) -> Iterator[dict[str, Any]]:
    """The tasks of the first step."""
    number = 0
    for file, path in enumerate(paths):
        ranges: list[list[int] | None] = [None]
        if kind_of(path) == "Parquet":
            with reading(path, "Parquet"):
                rows = int(pl.scan_parquet(path, glob=False).select(pl.len()).collect().item())
            ranges = [[first, min(first + CHUNK_ROWS, rows)] for first in range(0, max(1, rows), CHUNK_ROWS)]
        for one in ranges:
            yield {"step": "read", "number": number, "file": file, "rows": one, "kind": kind}
            number += 1


def _bucket_ranges(sizes: NDArray[np.int64], least: int) -> list[dict[str, Any]]:
    """The tasks of the second step: ranges of buckets, at least about so many, with what a worker takes at a time."""
    ranges: list[dict[str, Any]] = []
    first, most = 0, min(RANGE_ROWS, int(sizes.sum()) // least)
    for bucket in range(BUCKETS):
        if bucket + 1 == BUCKETS or sizes[first : bucket + 2].sum() > most:
            ranges.append({"step": "order", "number": len(ranges), "buckets": [first, bucket + 1]})
            first = bucket + 1
    return ranges


def _ranges(count: int, impressions: bool) -> list[dict[str, Any]]:
    """The tasks of the third step."""
    return [{"step": "finish", "number": number, "impressions": impressions} for number in range(count)]
