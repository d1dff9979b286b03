"""Parts of the lists of a user file, OUT/part-00000.parquet and so on: a row per row of the file, in its order.

Parts are renamed when complete, so any process may make any part, even twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
from numpy.typing import NDArray

from adagrpo.data.columns import USER_ID
from adagrpo.data.histories import read_histories
from adagrpo.data.prepared import load_item_ids, load_user_ids, load_whole
from adagrpo.errors import UserError
from adagrpo.lists.answers import answer
from adagrpo.lists.eligibility import Filter
from adagrpo.lists.recommender import Recommender
from adagrpo.pipeline.directory import RunDirectory, checked_stage, hash_of
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.named_lists import ListOptions, answering, list_read
from adagrpo.pipeline.serve import recommender
from adagrpo.storage.hashes import hash_file
from adagrpo.storage.writing import atomic_file
from adagrpo.types import ItemId

DAY = 86_400.0  # seconds
FACTS = "adagrpo"  # metadata key of a part: fingerprint of the lists' inputs, first row in the user file, and counts
COUNTS = ("users", "users_without_a_list", "unknown_users", "unknown_item_ids", "popular_lists")


def part_path(out: Path, number: int) -> Path:
    """Return the path of a part."""
    return out / f"part-{number:05d}.parquet"


@dataclass(frozen=True)
class Wanted:
    """Everything that determines the lists of a user file."""

    kind: type[RunDirectory]
    run: Path
    overrides: tuple[str, ...]
    users: Path
    columns: tuple[str, str]  # of users and histories
    part_users: int
    out: Path
    token: str  # of the process that holds the lock of `out`
    fingerprint: str  # of the lists' inputs
    weights: str  # their sha256
    reward: dict[str, Any]  # see `list_read`
    k: int
    asked: ListOptions
    include: Filter | None
    exclude: Filter | None
    popular: bool
    explain: bool
    kept: frozenset[str]  # names of existing, unchanged parts

    def facts(self, number: int) -> dict[str, Any] | None:
        """Return a part's metadata; None if it is missing, unreadable, or not of this request."""
        try:
            found = dict(json.loads(pl.read_parquet_metadata(part_path(self.out, number))[FACTS]))
            mine = (found["fingerprint"], found["first_row"]) == (self.fingerprint, number * self.part_users)
        except (pl.exceptions.PolarsError, OSError, KeyError, ValueError, TypeError):
            return None
        return found if mine else None

    def worker(
        self, loaded: tuple[RunDirectory, Recommender] | None = None
    ) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """Return the function that makes a part; loads the recommender unless given."""
        if loaded is not None:
            return _Answering(self, *loaded).make
        run, asked = self.kind.open(self.run, self.overrides), self.asked
        found = answering(run, asked)
        if hash_of(found.run, found.chosen.weights / "model.safetensors") != self.weights:
            raise UserError(f"{found.chosen.weights}: other weights than when the command began; carry it out again")
        if list_read(found.run, found.name, asked.reward_weight, asked.checkpoint) != self.reward:
            raise UserError("reward: another one than when the command began; carry it out again")
        return _Answering(self, run, recommender(run, asked)[0]).make


def read_parts(wanted: Wanted) -> Iterator[dict[str, Any]]:
    """Yield a task per part, with its rows unless it exists, then the totals `{"parts": ..., "rows": ...}`."""
    user, history = wanted.columns
    integers, parts, rows = False, 0, 0
    for part in read_histories(wanted.users, wanted.part_users, user=user, history=history):
        integers = integers if parts else _are_integers(part.users)
        task: dict[str, Any] = {"number": parts, "first_row": rows, "rows": len(part.users)}
        if part_path(wanted.out, parts).name not in wanted.kept:
            task |= {"users": part.users, "histories": part.histories, "integers": integers}
        parts, rows = parts + 1, rows + len(part.users)
        yield task
    yield {"parts": parts, "rows": rows}


def _are_integers(users: Sequence[ItemId]) -> bool:
    texts = pl.Series([str(user) for user in users], dtype=pl.String)
    typed = texts.cast(pl.Int64, strict=False)
    return not typed.null_count() and typed.cast(pl.String).equals(texts)


class LoggedHistories:
    """Complete logged histories, oldest item first."""

    def __init__(self, data: RunData) -> None:
        self.whole, self.rows = load_whole(checked_stage(data.run, "prepare")), data.user_rows

    def of(self, user: ItemId) -> list[int] | None:
        """Return a user's items; None if not in the logs."""
        return self._part(user, self.whole.values)

    def baskets_of(self, user: ItemId) -> list[int] | None:
        """Return the basket of each of a user's items; None if unknown."""
        return self._part(user, self.whole.baskets)

    def days_of(self, user: ItemId) -> list[float] | None:
        """Return the time of each of a user's items, in days; None if unknown."""
        return self._part(user, self.whole.days)

    def _part(self, user: ItemId, values: NDArray[Any] | None) -> list[Any] | None:
        row = self.rows.get(str(user))
        if row is None or values is None:
            return None
        return list(values[slice(*self.whole.offsets[row : row + 2])].tolist())

    @property
    def now(self) -> float | None:
        """The time of the last interaction, in days; None if unknown."""
        return None if self.whole.days is None else float(self.whole.days.max())


class _Answering:
    def __init__(self, wanted: Wanted, run: RunDirectory, served: Recommender) -> None:
        self.wanted, self.run, self.served = wanted, run, served
        self.narrowing = served.narrow(wanted.include, wanted.exclude)
        self.data = RunData(answering(run, wanted.asked).run)
        self.item_type = load_item_ids(self.data.prepared).dtype
        self.integers = load_user_ids(self.data.prepared).dtype == pl.Int64

    @cached_property
    def logged(self) -> LoggedHistories:  # read where the user file has no histories
        return LoggedHistories(self.data)

    def make(self, task: dict[str, Any]) -> dict[str, Any]:
        done = {name: value for name, value in task.items() if name in ("number", "rows", "parts")}
        if "users" not in task:
            return done
        wanted, users, histories = self.wanted, task["users"], task["histories"]
        baskets, days, now = None, None, None
        if histories is None:
            found = [self.logged.of(user) for user in users]
            histories = [[self.served.item_ids[item] for item in one or []] for one in found]
            baskets = [self.logged.baskets_of(user) for user in users]
            days, now = [self.logged.days_of(user) for user in users], self.logged.now
        answers = answer(
            self.served,
            histories,
            wanted.k,
            baskets=baskets,
            days=days,
            now=now,
            users=users,
            time=None if now is None else now * DAY,
            narrowing=self.narrowing,
            popular=wanted.popular,
            explain=wanted.explain,
            batch_size=self.run.config.evaluation.batch_size,
        )
        facts = {
            "fingerprint": wanted.fingerprint,
            "first_row": task["first_row"],
            "users": len(users),
            "users_without_a_list": sum(not one.items for one in answers),  # also after filters and history
            "unknown_users": sum(str(user) not in self.data.user_rows for user in users),  # of the logs
            "unknown_item_ids": sum(len(one.unknown) for one in answers),
            "popular_lists": sum(bool(one.items) and one.source == "popular" for one in answers),
        }
        texts = pl.Series(USER_ID, [str(user) for user in users], dtype=pl.String)
        typed = texts.cast(pl.Int64, strict=False) if task["integers"] and self.integers else texts
        if typed.null_count():
            user = texts.filter(typed.is_null())[0]
            raise UserError(f"{USER_ID} {user!r}: is no whole number as those before it; write all as text")
        columns = [
            typed,
            pl.Series("items", [one.items for one in answers], dtype=pl.List(self.item_type)),
            pl.Series("scores", [one.scores for one in answers], dtype=pl.List(pl.Float32)),
        ]
        if wanted.popular:
            columns.append(pl.Series("source", [one.source for one in answers], dtype=pl.String))
        if wanted.explain:
            told = [[json.dumps(reason, allow_nan=False) for reason in one.reasons or ()] for one in answers]
            columns.append(pl.Series("reasons", told, dtype=pl.List(pl.String)))
        with atomic_file(part_path(wanted.out, task["number"]), wanted.token) as path:
            pl.DataFrame(columns).write_parquet(path, metadata={FACTS: json.dumps(facts)})
            return done | {"sha256": hash_file(path)}
