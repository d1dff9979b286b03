"""The lists of a file of users in parts: which rows a part answers, how a part is made, what the folder says of them.

    OUT/part-00000.parquet      a row for each row of the file, in its order: user_id, items, scores, best first
    OUT/manifest.json           each part with its rows of the file, its size and its sha256

A part is made whole under another name, synced to disk, and then takes its name in one move; what it answers stands in
the part itself. So it does not matter which process makes a part, nor whether two do: a row is answered by the part
that its number belongs to, and that part is there once or not at all. Who made it gives back its sha256, which says
later whether it is still what was made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from adagrpo.data.columns import USER_ID
from adagrpo.data.histories import read_histories
from adagrpo.data.prepared import load_item_ids, load_user_ids, load_whole
from adagrpo.errors import UserError
from adagrpo.lists.answers import answer
from adagrpo.lists.eligibility import Filter
from adagrpo.lists.names import START, parse_list
from adagrpo.lists.query import ItemId
from adagrpo.lists.recommender import Recommender
from adagrpo.pipeline.choose_checkpoint import choose_checkpoint
from adagrpo.pipeline.directory import RunDirectory
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.named_lists import ListOptions, list_read
from adagrpo.pipeline.run import Run
from adagrpo.pipeline.serve import recommender
from adagrpo.storage.hashes import hash_file
from adagrpo.storage.writing import atomic_file

FACTS = "adagrpo"  # the key in the metadata of a part
COUNTS = ("users", "users_without_a_list", "unknown_users", "unknown_item_ids", "popular_lists")


class Facts(NamedTuple):
    """Facts of a part."""

    fingerprint: str  # of what the lists are made from
    first_row: int  # of the file of users; 0 is the first row of data
    users: int  # rows
    users_without_a_list: int = 0
    unknown_users: int = 0  # that the logs do not have
    unknown_item_ids: int = 0  # in histories
    popular_lists: int = 0


def part_path(out: Path, number: int) -> Path:
    """Return the path of a part."""
    return out / f"part-{number:05d}.parquet"


def facts_of(path: Path) -> Facts | None:
    """Read the facts of a part, None where there is no part that can be read."""
    if not path.is_file():
        return None
    try:
        return Facts(**json.loads(pl.read_parquet_metadata(path)[FACTS]))
    except (pl.exceptions.PolarsError, OSError, KeyError, ValueError, TypeError):
        return None


@dataclass(frozen=True)
class Wanted:
    """All that decides the lists of a file of users, and where they go: enough to make any part of them, anywhere."""

    run: Path
    overrides: tuple[str, ...]
    users: Path
    columns: tuple[str, str]  # of users and histories
    part_users: int
    out: Path
    token: str  # of the process that holds the lock of `out`
    fingerprint: str  # of what the lists are made from
    weights: str  # their sha256
    reward: dict[str, Any]  # see `list_read`
    k: int
    asked: ListOptions
    include: Filter | None
    exclude: Filter | None
    popular: bool
    kept: frozenset[str]  # names of the parts that were there, as they were written

    def facts(self, number: int) -> Facts | None:
        """Of a part that is there and answers what it is to answer."""
        found = facts_of(part_path(self.out, number))
        wanted = (self.fingerprint, number * self.part_users)
        return found if found is not None and (found.fingerprint, found.first_row) == wanted else None

    def worker(
        self, loaded: tuple[RunDirectory, Recommender] | None = None
    ) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """Load what answers unless it is there, and give the function that makes a part."""
        return _Answering(self, *(loaded or self._load())).make

    def _load(self) -> tuple[RunDirectory, Recommender]:
        run = Run.open(self.run, self.overrides)
        asked = self.asked
        called = parse_list(str(asked.arm))
        chosen = choose_checkpoint(run, called.policy or START, asked.checkpoint)
        if run.hash_input(chosen.weights / "model.safetensors") != self.weights:
            raise UserError(f"{chosen.weights}: other weights than when the command began; carry it out again")
        if list_read(run, called, asked.reward_weight, asked.checkpoint) != self.reward:
            raise UserError("reward: another one than when the command began; carry it out again")
        return run, recommender(run, asked)[0]


def read_parts(wanted: Wanted) -> Iterator[dict[str, Any]]:
    """The tasks of all parts in their order: which are there already, and the rows of the others.

    The last one, `{"parts": ..., "rows": ...}`, says how many there were.
    """
    user, history = wanted.columns
    integers, number, rows = False, 0, 0
    parts = read_histories(wanted.users, wanted.part_users, user=user, history=history)
    for number, part in enumerate(parts):
        if number == 0:
            integers = _are_integers(part.users)
        rows += len(part.users)
        task: dict[str, Any] = {"number": number, "first_row": rows - len(part.users), "rows": len(part.users)}
        if part_path(wanted.out, number).name not in wanted.kept:
            task |= {"users": part.users, "histories": part.histories, "integers": integers}
        yield task
    yield {"parts": number + 1 if rows else 0, "rows": rows}


def _are_integers(users: Sequence[ItemId]) -> bool:
    """Check that the ids of a file are whole numbers, plainly written."""
    texts = pl.Series([str(user) for user in users], dtype=pl.String)
    typed = texts.cast(pl.Int64, strict=False)
    return not typed.null_count() and typed.cast(pl.String).equals(texts)


class LoggedHistories:
    """All that the logs have of each user, oldest first."""

    def __init__(self, data: RunData) -> None:
        self.whole = load_whole(data.run.checked_stage("prepare"))
        names = load_user_ids(data.prepared).cast(pl.String).to_list()
        self.rows = {name: row for row, name in enumerate(names)}

    def of(self, user: ItemId) -> list[int] | None:
        """Items of a user; None of one that the logs do not have."""
        row = self.rows.get(str(user))
        if row is None:
            return None
        first, end = self.whole.offsets[row : row + 2]
        found: list[int] = self.whole.values[first:end].tolist()
        return found


class _Answering:
    """The recommender of one worker."""

    def __init__(self, wanted: Wanted, run: RunDirectory, served: Recommender) -> None:
        self.wanted, self.run, self.served = wanted, run, served
        self.narrowing = served.narrow(wanted.include, wanted.exclude)
        self.data = RunData(run)
        self.item_type = load_item_ids(self.data.prepared).dtype
        self.integers = load_user_ids(self.data.prepared).dtype == pl.Int64
        self._logged: LoggedHistories | None = None

    def make(self, task: dict[str, Any]) -> dict[str, Any]:
        """Make a part unless it is there; gives back number, rows and, if made, sha256, or the last task as it is."""
        made = {"sha256": self._publish(task)} if "users" in task else {}
        return {name: value for name, value in task.items() if name in ("number", "rows", "parts")} | made

    def _publish(self, task: dict[str, Any]) -> str:
        """Make a part, and give its sha256."""
        wanted, users = self.wanted, task["users"]
        histories, unknown_users = task["histories"], 0
        if histories is None:
            found = [self._of_logs(user) for user in users]
            unknown_users = sum(one is None for one in found)
            histories = [one or [] for one in found]
        answers = answer(
            self.served,
            histories,
            wanted.k,
            narrowing=self.narrowing,
            popular=wanted.popular,
            batch_size=self.run.config.evaluation.batch_size,
        )
        facts = Facts(
            wanted.fingerprint,
            task["first_row"],
            len(users),
            users_without_a_list=sum(not one.items for one in answers),  # also where filter and history leave none
            unknown_users=unknown_users,
            unknown_item_ids=sum(len(one.unknown) for one in answers),
            popular_lists=sum(bool(one.items) and one.source == "popular" for one in answers),
        )
        columns = [
            self._users(users, task["integers"] and self.integers),
            pl.Series("items", [one.items for one in answers], dtype=pl.List(self.item_type)),
            pl.Series("scores", [one.scores for one in answers], dtype=pl.List(pl.Float32)),
        ]
        if wanted.popular:
            columns.append(pl.Series("source", [one.source for one in answers], dtype=pl.String))
        with atomic_file(part_path(wanted.out, task["number"]), wanted.token) as place:
            pl.DataFrame(columns).write_parquet(place, metadata={FACTS: json.dumps(facts._asdict())})
            return hash_file(place)

    def _users(self, users: Sequence[ItemId], integers: bool) -> pl.Series:
        texts = pl.Series(USER_ID, [str(user) for user in users], dtype=pl.String)
        typed = texts.cast(pl.Int64, strict=False) if integers else texts
        if typed.null_count():
            row = int(typed.is_null().arg_true()[0])
            raise UserError(f"{USER_ID} {texts[row]!r}: is no whole number as those before it; write all as text")
        return typed

    def _of_logs(self, user: ItemId) -> list[ItemId] | None:
        self._logged = self._logged or LoggedHistories(self.data)
        items = self._logged.of(user)
        return None if items is None else [self.served.item_ids[item] for item in items]
