"""The stage `control`: the list that users get today, from a file of `decide.control`.

It has a row per user and item, in the order of `rank`, else of the rows, or a row per user with a list, `items`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from adagrpo.data.columns import ITEM_ID, USER_ID
from adagrpo.data.histories import read_histories
from adagrpo.errors import UserError
from adagrpo.lists.names import CONTROL
from adagrpo.lists.sources import StoredLists
from adagrpo.pipeline.directory import RunDirectory
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.json_files import write_json
from adagrpo.pipeline.stage import Declaration, Read
from adagrpo.readers.cells import id_value, numbers
from adagrpo.readers.chunks import read_chunks
from adagrpo.readers.formats import columns_of, require

LISTS, SUMMARY = "lists.parquet", "summary.json"
ITEMS, RANK = "items", "rank"
PART_USERS = 10_000


def control(run: RunDirectory) -> Declaration:
    """Declare the stored lists."""
    data, named = RunData(run), run.config.decide.control
    assert named is not None, "the recipe names a file"
    path = run.data / named

    def build(work: Path) -> None:
        columns = run.config.data.columns
        found = _read(path, columns.user, columns.item)
        if not any(found.values()):
            raise UserError(
                f"{path}: holds no list; it takes rows of {USER_ID} and {ITEM_ID}, or of {USER_ID} and {ITEMS}"
            )
        rows = {str(name): row for row, name in enumerate(data.user_ids)}
        strangers = [user for user in found if user not in rows]
        items = dict.fromkeys(item for kept in found.values() for item in kept)
        known, unknown = data.known([*items])
        for what, out, all_of in (("users", strangers, found), ("items", unknown, items)):
            if len(out) == len(all_of):
                raise UserError(
                    f"{path}: none of its {len(all_of):,} {what} is in the logs, the first is {_quoted(out[0])};"
                    f" it takes the ids of the logs"
                )
        number = dict(zip([item for item in items if item not in {*unknown}], known, strict=True))
        lists = {
            user: [number[item] for item in kept if item in number] for user, kept in found.items() if user in rows
        }
        table = pl.DataFrame(
            {USER_ID: [*lists], ITEMS: [*lists.values()]}, schema={USER_ID: pl.String, ITEMS: pl.List(pl.Int32)}
        )
        table.write_parquet(work / LISTS)
        summary: dict[str, Any] = {"users": len(found), "items": len(items)}
        summary |= {"unknown_users": len(strangers), "first_unknown_user": next(iter(strangers), None)}
        summary |= {"unknown_items": len(unknown), "first_unknown_item": next(iter(unknown), None)}
        write_json(work / SUMMARY, summary)

    reads: list[Read] = ["prepare:users.parquet", "prepare:items.parquet", path]
    return Declaration(build, reads, (LISTS, SUMMARY), ("data.columns.user", "data.columns.item"))


def stored_lists(data: RunData) -> StoredLists:
    """Load the lists of the stage."""
    table = pl.read_parquet(data.run.checked(CONTROL, LISTS))
    return StoredLists(dict(table.iter_rows()), data.num_items)


def doubts_of_control(data: RunData) -> list[str]:
    """Return what only the file has, and which cases lack a list; empty without a file."""
    if data.config.decide.control is None:
        return []
    said, doubts = data.run.content(CONTROL, SUMMARY), []
    for what, where in (("user", "logs"), ("item", "catalogue")):
        if count := said[f"unknown_{what}s"]:
            first = f"the first is {_quoted(said[f'first_unknown_{what}'])}"
            doubts.append(
                f"{CONTROL}: {count:,} of the {said[f'{what}s']:,} {what}s of its file are not in the {where} and were"
                f" left out, {first}"
            )
    stored = {*pl.read_parquet(data.run.checked(CONTROL, LISTS))[USER_ID].to_list()}
    without = {
        split: np.mean([str(data.user_ids[user]) not in stored for user in data.measured_cases(split).users.tolist()])
        for split in ("validation", "test")
    }
    if any(without.values()):
        shares = " and ".join(f"{100 * share:.1f} % of the {split} cases" for split, share in without.items())
        doubts.append(f"{CONTROL}: its file has no list for the users of {shares}, which count as misses")
    return doubts


def _read(path: Path, user: str, item: str) -> dict[str, list[str]]:
    """Read the file: the ids of each user's items, best first, without repeats."""
    there = columns_of(path)
    user = USER_ID if USER_ID in there else user
    require(path, [user], there)
    lists: dict[str, list[str]] = {}
    if ITEMS in there:
        for part in read_histories(path, PART_USERS, user=user, history=ITEMS):
            for name, kept in zip(map(str, part.users), part.histories or (), strict=True):
                if name in lists:
                    raise UserError(f"{path}: user {_quoted(name)} has two rows; it takes one, with the whole list")
                lists[name] = list(dict.fromkeys(map(str, kept)))
        return lists
    item = ITEM_ID if ITEM_ID in there else item
    require(path, [item], there)
    ranked: dict[str, list[tuple[float, str]]] = {}
    for chunk in read_chunks(path, [user, item, *([RANK] if RANK in there else [])], [user, item]):
        problems = [None] * len(chunk.table) if chunk.problem is None else chunk.problem.to_list()
        at = range(chunk.first + 1, chunk.first + 1 + len(chunk.table))  # without ranks a row's number is its rank
        ranks = numbers(chunk.table[RANK]).cast(pl.Float64).to_list() if RANK in there else list(map(float, at))
        for row, name, one, rank, problem in zip(
            at, chunk.table[user], chunk.table[item], ranks, problems, strict=True
        ):
            ids = [id_value(value) for value in (name, one)]
            if problem is not None:
                raise UserError(f"{path}, row {row}: {problem}")
            if None in ids or not all(str(value).strip() for value in ids):
                raise UserError(f"{path}, row {row}: {user} is {name!r} and {item} is {one!r}; expected two ids")
            if rank is None:
                raise UserError(f"{path}, row {row}: {RANK} is no number")
            ranked.setdefault(str(ids[0]), []).append((rank, str(ids[1])))
    for name, rows in ranked.items():
        lists[name] = list(dict.fromkeys(one for _, one in sorted(rows, key=lambda pair: pair[0])))
    return lists


def _quoted(given: int | str) -> str:
    name = str(given)
    return repr(name if len(name) <= 60 else f"{name[:60]}...")
