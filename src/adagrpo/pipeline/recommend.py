"""Lists for many users: what `adagrpo serve` answers one by one, written as Parquet in parts.

    OUT/part-00000.parquet      user_id, rank from 1, item_id, score; the users of a part, in the order of the file
    OUT/summary.json            counts, and what made the lists; written last

Memory holds one part. A command that was killed goes on behind the last part that is whole.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl

from adagrpo.data.columns import ITEM, ITEM_ID, POSITION, USER, USER_ID
from adagrpo.data.histories import HISTORY, UserHistories, about_how_many, read_histories
from adagrpo.data.logs.formats import columns_of, require
from adagrpo.data.prepared import load_item_ids, load_user_ids
from adagrpo.errors import UserError
from adagrpo.networks.layers import Precision
from adagrpo.pipeline.choose_checkpoint import choose_checkpoint
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.run import Run
from adagrpo.pipeline.serve import recommender
from adagrpo.pipeline.versions import LATEST
from adagrpo.serving.eligibility import Filter, Narrowing
from adagrpo.serving.recommender import ItemId, Query, Recommender, Source
from adagrpo.storage.artifacts import hash_file, hash_json, write_file, written_beside
from adagrpo.storage.locks import lock_folder

__all__ = ["Answer", "answer", "logged_histories", "recommend_users"]

PART_USERS = 5000
SUMMARY, BEGUN = "summary.json", "begun.json"


class Answer(NamedTuple):
    """The list of one history, best first."""

    items: list[ItemId]
    scores: list[float]
    codes: list[list[int]]
    unknown: list[ItemId]  # ids of the history that name no item; they were left out of it
    source: Source = "policy"


def answer(
    served: Recommender,
    histories: Sequence[Sequence[ItemId]],
    k: int,
    *,
    exclude: Sequence[Sequence[ItemId]] | None = None,
    narrowing: Narrowing | None = None,
    popular: bool = False,
    batch_size: int = 256,
    report: Callable[[int], None] = lambda done: None,
) -> list[Answer]:
    """The first `k` of the list of each history, in the ids of the logs.

    Args:
        served: what answers.
        histories: item ids, oldest first. Where none of them names an item, the list is empty, or see `popular`.
        k: at most the width of the beam.
        exclude: for each history the ids that its list leaves out; those that name no item change nothing.
        narrowing: what all lists are held to, of `Recommender.narrow`.
        popular: answer with the most popular items where no id of a history names an item.
        batch_size: histories at a time, those of similar length together.
        report: called with the number of histories done.

    Raises:
        UserError: `k` is more than the beam holds, or `exclude` is not one list of ids for each history.
    """
    if not 1 <= k <= served.width:
        raise UserError(f"k: {k} is none of 1 to {served.width}, the beam of the recipe (evaluation.beam_width)")
    _check_lists("histories", histories, len(histories))
    if exclude is not None:
        _check_lists("exclude", exclude, len(histories))
    known, unknown = zip(*map(served.known, histories), strict=True) if histories else ((), ())
    left_out = None if exclude is None else [served.known(ids)[0] for ids in exclude]
    answers = [Answer([], [], [], names) for names in unknown]
    held = narrowing or Narrowing((), None, len(served.item_ids))
    order = sorted((row for row, items in enumerate(known) if items or popular), key=lambda row: -len(known[row]))
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        without = [(*held.without, *(() if left_out is None else left_out[row])) for row in rows]
        queries = [Query(known[row], None, out, held.eligible) for row, out in zip(rows, without, strict=True)]
        for row, found in zip(rows, served.recommend(queries), strict=True):
            answers[row] = Answer(found.items[:k], found.scores[:k], found.codes[:k], unknown[row], found.source)
        report(first + len(rows))
    return answers


def _check_lists(name: str, lists: Sequence[Sequence[ItemId]], count: int) -> None:
    if len(lists) != count:
        raise UserError(f"{name}: holds {len(lists)} lists for {count} histories; give one for each")
    for place, ids in enumerate(lists):
        if isinstance(ids, str) or not isinstance(ids, Sequence | np.ndarray):
            raise UserError(f"{name}[{place}]: is {ids!r}; a list of item ids is wanted, one list for each user")


def recommend_users(
    run: Run,
    users: Path,
    out: Path,
    *,
    k: int = 10,
    arm: str | None = None,
    checkpoint: Literal["best", "final"] = "best",
    reward_weight: float = 0.0,
    exclude_history: bool | None = None,
    precision: Precision | None = None,
    columns: tuple[str | None, str] = (None, HISTORY),
    catalog: str = LATEST,
    include: Filter | None = None,
    exclude: Filter | None = None,
    popular: bool = False,
) -> dict[str, Any]:
    """Write the lists of all users of a file.

    Args:
        run: with a trained policy.
        users: see `adagrpo.data.histories`. Without histories it names users of the run's logs, and the history is
            all that the logs have of them, the validation and test interactions included.
        out: a new folder, or one that the same command began.
        k: length of the lists.
        arm: see `adagrpo.pipeline.choose_checkpoint.choose_checkpoint`.
        checkpoint: of that arm.
        reward_weight: see `adagrpo.pipeline.serve.recommender`.
        exclude_history: leave the items of the whole history out of each list; None: as the run's evaluation does.
        precision: see `adagrpo.pipeline.serve.recommender`.
        columns: names of the user and the history column; a user column that is not named is `user_id`, or where the
            file has none, that of the run's logs.
        catalog: see `adagrpo.pipeline.serve.recommender`.
        include: what lists may hold, see `adagrpo.serving.eligibility`.
        exclude: what they may not.
        popular: give users without a known history the most popular items; a column `source` then says so.

    Returns:
        The content of summary.json and the folder.

    Raises:
        UserError: the file cannot be read as above, nothing is eligible, or the folder holds the lists of something
            else.
    """
    served, about = recommender(run, arm, checkpoint, reward_weight, exclude_history, precision, catalog)
    weights = choose_checkpoint(run, arm, checkpoint).weights / "model.safetensors"
    kept = ("name", "arm", "checkpoint", "step", "reward_weight", "precision", "exclude_history", "catalog_version")
    made_from = {key: about[key] for key in kept} | {"k": k, "beam_width": served.width}
    narrowing = served.narrow(include, exclude)
    if narrowing.left == 0:
        raise UserError("--include, --exclude: no item is eligible; see which values the item table has")
    if include or exclude:
        made_from |= {"include": include, "exclude": exclude, "eligible_items": narrowing.left}
    inputs = {"weights": run.hash_input(weights), "users": hash_file(users) if users.is_file() else None}
    inputs |= {"configuration": run.config_hash}
    user = columns[0] or _user_column(run, users)
    fingerprint = hash_json(made_from | inputs | ({"popular": True} if popular else {}))
    with lock_folder(out, "list of recommendations"):
        if (out / SUMMARY).is_file() and _begun(out) == fingerprint:
            return dict(json.loads((out / SUMMARY).read_text(encoding="utf-8"))) | {"folder": str(out)}
        if _begun(out) not in (None, fingerprint):
            raise UserError(f"{out}: holds lists of another checkpoint, file or length; --out takes a new folder")
        parts = read_histories(users, PART_USERS, user=user, history=columns[1])
        first = list(islice(parts, 1))  # read before anything is written: a file that is refused leaves no folder taken
        write_file(out / BEGUN, json.dumps({"fingerprint": fingerprint}) + "\n")
        written = _Written(run, served, out, k, about_how_many(users), narrowing, popular)
        for number, part in enumerate(chain(first, parts)):
            written.add(number, part)
        summary = made_from | written.counts
        write_file(out / SUMMARY, json.dumps(summary, indent=1) + "\n")
    return summary | {"folder": str(out)}


def _user_column(run: Run, users: Path) -> str:
    """`user_id`, or the column of the users in the run's logs, whichever a file has."""
    there, logged = columns_of(users), run.config.data.columns.user
    if USER_ID in there:
        return USER_ID
    require(users, [logged], there, "--user-column")
    return logged


def logged_histories(data: RunData) -> dict[str, list[int]]:
    """All that the logs have of each user, oldest first: rows of items, by the id of the user as text."""
    tables = [
        pl.read_parquet(data.run.checked("prepare", f"{name}.parquet"), columns=[USER, POSITION, ITEM])
        for name in ("train", "validation", "test")
    ]
    grouped = pl.concat(tables).sort(USER, POSITION).group_by(USER, maintain_order=True).agg(ITEM)
    names = load_user_ids(data.prepared).cast(pl.String)
    return dict(zip(names.gather(grouped[USER]).to_list(), grouped[ITEM].to_list(), strict=True))


def _begun(out: Path) -> str | None:
    path = out / BEGUN
    return json.loads(path.read_text(encoding="utf-8"))["fingerprint"] if path.is_file() else None


class _Written:
    """Makes parts, or takes those that are there, and counts."""

    def __init__(
        self, run: Run, served: Recommender, out: Path, k: int, expected: int, narrowing: Narrowing, popular: bool
    ) -> None:
        self.run, self.served, self.out, self.k = run, served, out, k
        self.narrowing, self.popular = narrowing, popular
        self.data, self.expected, self.started = RunData(run), expected, time.monotonic()
        self.item_ids = pl.Series(ITEM_ID, served.item_ids, dtype=load_item_ids(self.data.prepared).dtype)
        self.user_type = load_user_ids(self.data.prepared).dtype
        self.logged: dict[str, list[int]] | None = None
        self.counts = {"users": 0, "users_without_a_list": 0, "unknown_users": 0, "unknown_item_ids": 0}
        self.counts |= {"popular_lists": 0} if popular else {}

    def add(self, number: int, part: UserHistories) -> None:
        """Count the users of a part, and write their lists unless they are there."""
        histories = part.histories if part.histories is not None else self._of_logs(part.users)
        if number == 0:
            self.user_type = _type_of(part.users, self.user_type)
        for history in histories:
            known, unknown = self.served.known(history)
            self.counts["unknown_item_ids"] += len(unknown)
            self.counts["popular_lists" if self.popular else "users_without_a_list"] += not known
        path = self.out / f"part-{number:05d}.parquet"
        if not path.is_file():
            table = self._table(part.users, histories)
            with written_beside(path) as place:
                table.write_parquet(place)
        self.counts["users"] += len(part.users)
        self._report(0)

    def _report(self, done: int) -> None:
        users = self.counts["users"] + done
        rate = users / max(1e-9, time.monotonic() - self.started)
        self.run.console.progress("recommend", users, max(users, self.expected), {"users/s": rate})

    def _table(self, users: list[ItemId], histories: list[list[ItemId]]) -> pl.DataFrame:
        answers = answer(
            self.served,
            histories,
            self.k,
            narrowing=self.narrowing,
            popular=self.popular,
            batch_size=self.run.config.evaluation.batch_size,
            report=self._report,
        )
        lengths = [len(one.items) for one in answers]
        texts = pl.Series(USER_ID, [str(user) for user in users], dtype=pl.String)
        typed = texts.cast(self.user_type, strict=False)
        if typed.null_count():
            row = int(typed.is_null().arg_true()[0])
            raise UserError(f"{USER_ID} {texts[row]!r}: is no whole number as those before it; write all as text")
        table = pl.DataFrame(
            [
                typed.gather(np.repeat(np.arange(len(users)), lengths)),
                pl.Series("rank", [place for count in lengths for place in range(1, count + 1)], dtype=pl.Int32),
                pl.Series(ITEM_ID, [item for one in answers for item in one.items], dtype=self.item_ids.dtype),
                pl.Series("score", [score for one in answers for score in one.scores], dtype=pl.Float32),
            ]
        )
        if self.popular:
            sources = pl.Series("source", [one.source for one in answers for _ in one.items], dtype=pl.String)
            table = table.with_columns(sources)
        return table

    def _of_logs(self, users: list[ItemId]) -> list[list[ItemId]]:
        """The logged histories; of a user that the logs do not have, none."""
        if self.logged is None:
            self.logged = logged_histories(self.data)
        logged = self.logged
        self.counts["unknown_users"] += sum(str(user) not in logged for user in users)
        names = self.item_ids
        return [names.gather(logged.get(str(user), [])).to_list() for user in users]


def _type_of(users: list[ItemId], logged: pl.DataType) -> pl.DataType:
    """The type of the user ids of a file: that of the logs where they are of it, else text."""
    texts = pl.Series([str(user) for user in users], dtype=pl.String)
    typed = texts.cast(logged, strict=False)
    return pl.String() if typed.null_count() or not typed.cast(pl.String).equals(texts) else logged
