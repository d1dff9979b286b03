"""What can be asked of a log: the next item or basket, by time or of each user's last, repeats or none; and notes.

By time, the last part of the log is for test, the one before for validation; a case is a user's first basket in it, if
the user has an earlier one. A part is the shortest of whole days (whole weeks in logs of at least ten) that holds
`CASES` cases, and at most a sixth of the log's time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from adagrpo.config.data import SplitConfig
from adagrpo.data.columns import BASKET, ITEM_ID, TIMESTAMP, USER_ID
from adagrpo.data.logs.interactions import Logs
from adagrpo.data.logs.log_fields import UNITS, moment
from adagrpo.readers.formats import columns_of, listed, one_line

ODD = r"[^!-~]|^0\d|^\d+\.0+$"  # an id without it is spelt as `spellings` spells it
INVISIBLE = r"[\u{ad}\u{200b}-\u{200d}\u{2060}\u{feff}]"  # soft hyphen, zero-width characters, byte order mark
NUMBER = r"^0*(\d+?)(?:\.0+)?$"
SHOWN_SPELLINGS, SHOWN_CHARACTERS = 3, 40


def duplicates_note(count: int | None) -> str | None:
    """Return a note on exact duplicates, or None."""
    if not count:
        return None
    return (
        f"note: exact duplicates, of user, item and time: {count:,}, each of which counts again; to keep the first"
        " alone, --set data.drop_duplicates=true"
    )


def ids_note(users: pl.Series, items: pl.Series) -> str | None:
    """Return a note on ids that are probably one, or None."""
    parts = []
    for kind, ids in (("user", users), ("item", items)):
        groups = spellings(ids)
        if groups:
            shown = ", ".join(ascii(text[:SHOWN_CHARACTERS]) for text in groups[0][:SHOWN_SPELLINGS])
            parts.append(f"of {len(groups):,} {kind}{'s' * (len(groups) > 1)} such as {shown}")
    if not parts:
        return None
    return (
        f"note: several spellings {', '.join(parts)}: they differ by white space, invisible characters, Unicode form or"
        " the zeros of a number alone, and each counts as an id of its own; if they are the same, write one of them"
        " everywhere"
    )


def spellings(ids: pl.Series) -> list[list[str]]:
    """Group ids that differ only by white space, Unicode form, invisible characters or zeros, largest first."""
    if ids.dtype != pl.String:
        return []
    odd = ids.str.contains(ODD)
    if not odd.any():
        return []
    visible = pl.col("id").str.normalize("NFC").str.replace_all(INVISIBLE, "").str.replace_all(r"\s+", " ")
    spelling = visible.str.strip_chars().str.replace(NUMBER, "${1}")
    table = pl.DataFrame({"id": ids.filter(odd).unique()}).with_columns(spelling=spelling)
    plain = pl.DataFrame({"id": ids.filter(~odd).unique()}).with_columns(spelling="id")
    table = pl.concat([table, plain.join(table, on="spelling", how="semi")])
    groups = table.group_by("spelling").agg(pl.col("id").sort(), pl.len()).filter(pl.col("len") > 1)
    return groups.sort("len", "spelling", descending=[True, False])["id"].to_list()


def unread_note(path: Path, read: Collection[str]) -> str | None:
    """Return a note on item columns that are neither texts nor attributes, or None."""
    names: Sequence[str] = columns_of(path)
    parents = {name.rpartition(".")[0] for name in names}
    unread = [name for name in names if name not in read and name not in parents]
    if not unread:
        return None
    return (
        f"note: neither texts nor attributes of {path.name}: {listed(unread)}; they are kept, a reward may name them,"
        " and where there are impressions, numbers are a part of users' tastes; one named in data.items.groups narrows"
        " lists, one in data.items.text or data.items.attributes describes items"
    )


SEVERAL = 0.01  # share of lines in baskets of several, from which on a case is a basket
CASES, FEW, LEAST = 2000, 1000, 100  # cases wanted in each part, few enough to say so, and too few to ask by time
LONGEST = 1 / 6  # of the log's time, of each part
SHOWN = 12  # ids that a note names
WEEKS = 70  # days of a log from which on parts are whole weeks


class ByTime(NamedTuple):
    """A split in time."""

    validation_from: str  # a date
    test_from: str
    days: int  # of the test part
    validation_cases: int
    test_cases: int


class Question(NamedTuple):
    """What is asked of a log."""

    baskets: bool
    lines_in_several: float  # share of lines whose basket holds another
    repeats: float  # share of lines with an item of an earlier basket of the user
    users_with_one: float  # share of users with one basket
    by_time: ByTime | None  # None: each user's last basket
    why_not: str | None = None  # why there is no split in time, where the log has times


def order_notes(left_out: Mapping[str, int], no_items: Sequence[str]) -> list[str]:
    """Say which rows of orders are left out."""
    words = {"rows_of_guests": "have no user: guest orders", "rows_returned": "have a quantity of at most 0: returns"}
    notes = [f"note: {count:,} rows {words[kind]}; they are left out" for kind, count in left_out.items() if count]
    if no_items:
        named = ", ".join(map(one_line, no_items[:SHOWN])) + (", ..." if len(no_items) > SHOWN else "")
        notes.append(
            f"note: item ids without a digit are taken for no items and left out: {named}; to keep them,"
            " --set 'data.drop_items=[]'"
        )
    return notes


def question_of(logs: Logs) -> Question:
    """Derive the question from all rows of a log."""
    table, key = logs.interactions, logs.time_key
    basket = BASKET if BASKET in table.columns else TIMESTAMP if key == TIMESTAMP else None
    if basket is None:
        return Question(False, 0.0, _repeats(table), _with_one(table), None)
    several = float((table.group_by(USER_ID, basket).len()["len"].replace(1, 0).sum()) / len(table))
    baskets = table.group_by(USER_ID, basket).agg(pl.col(key).max().alias("at"))
    alone = _with_one(baskets)
    if several < SEVERAL or alone == 1:  # of users with one basket each, only its order can be asked
        baskets, alone = table.select(USER_ID, pl.col(key).alias("at")), _with_one(table)
        known = Question(False, several, _repeats(table), alone, None)
    else:
        known = Question(True, several, _repeats(table.unique([USER_ID, basket, ITEM_ID])), alone, None)
    unit = logs.understood.get("time", {}).get("unit")
    if key != TIMESTAMP:
        return known
    if unit is None:
        return known._replace(why_not="of which unit its times are is not known")
    found = _parts(baskets, UNITS[unit] * 86_400)
    return known._replace(why_not=found) if isinstance(found, str) else known._replace(by_time=found)


def _repeats(lines: pl.DataFrame) -> float:
    return 1 - lines.select(USER_ID, ITEM_ID).n_unique() / len(lines)


def _with_one(rows: pl.DataFrame) -> float:  # the share of users with one row
    counts = rows.group_by(USER_ID).len()["len"]
    return int((counts == 1).sum()) / len(counts)


def latest_time(now: float, unit: str) -> float:
    """Return the time, in a unit of `UNITS`, after which rows lie in the future; `now` is in seconds since 1970."""
    return (now + 86_400) * UNITS[unit]  # a clock may be of another zone


def future_note(logs: Logs, now: float) -> str | None:
    """Say how many rows lie in the future; `now` is in seconds since 1970."""
    unit = logs.understood.get("time", {}).get("unit")
    if unit is None:
        return None
    times = logs.interactions[TIMESTAMP]
    latest = latest_time(now, unit)
    late = int((times > latest).sum())
    if not late:
        return None
    last = moment(float(times.max()), unit)  # type: ignore[arg-type]
    return (
        f"note: {late:,} rows lie in the future, the last at {last}; to leave them out, --set"
        f" data.refuse.after={latest:.0f} --max-bad-rows {late}"
    )


def _parts(rows: pl.DataFrame, day: float) -> ByTime | str:
    """Find the parts from users and times of baskets; else return why there are none."""
    users = rows[USER_ID].rank("dense").to_numpy().astype(np.int64) - 1
    at = rows["at"].to_numpy().astype(np.float64) / day
    first = np.full(int(users.max()) + 1, np.inf)
    np.minimum.at(first, users, at)
    begin, end = float(np.floor(at.min())), float(np.floor(at.max())) + 1
    step = 7 if end - begin >= WEEKS else 1
    most = int((end - begin) * LONGEST) // step * step
    if most < 1:
        return f"it spans {end - begin:g} days, too few to hold a part back"

    def part(until: float) -> tuple[float, int]:
        """Start and cases of the part that ends at a day."""
        latest = np.full(len(first), -np.inf)
        before = at < until
        np.maximum.at(latest, users[before], at[before])
        for days in range(step, most + 1, step):
            since = until - days
            cases = int(((first < since) & (latest >= since)).sum())
            if cases >= CASES:
                break
        return since, cases

    test_from, tests = part(end)
    validation_from, validations = part(test_from)
    if min(tests, validations) < LEAST:
        held = min(tests, validations)
        return f"the last {most} days hold {held} users with an earlier history, too few"
    dates = (datetime.fromtimestamp(days * 86_400, UTC).strftime("%Y-%m-%d") for days in (validation_from, test_from))
    return ByTime(next(dates), next(dates), int(end - test_from), validations, tests)


def question_lines(question: Question, split: SplitConfig | None = None) -> list[str]:
    """Tell which question is asked, its own or a `split`'s, and what it rests on."""
    found, baskets = question.by_time, question.baskets
    own = (found.validation_from, found.test_from) if found is not None else None
    asked = own if split is None else (split.validation_from, split.test_from) if split.kind == "temporal" else None
    if split is not None and (asked, split.baskets) != (own, baskets):
        how = (
            "each user's last of the log"
            if asked is None
            else f"by time: validation from {asked[0]}, test from {asked[1]}"
        )
        return [f"asked: the next {'basket' if split.baskets else 'item'}, {how}; data.split is set"]
    what = "the next basket" if baskets else "the next item"
    shares = (
        f"{100 * question.lines_in_several:.1f} % of the lines stand in baskets of several,"
        f" {100 * question.repeats:.1f} % repeat an item of the user"
    )
    if found is None:
        why = f" ({question.why_not})" if question.why_not else ""
        lines = [f"asked: {what} of each user, the last of the log{why}; {shares}"]
    else:
        lines = [
            f"asked: {what}, by time: validation from {found.validation_from}, test from {found.test_from}"
            f" ({found.validation_cases:,} and {found.test_cases:,} users with an earlier history); {shares}"
        ]
        if found.test_cases < FEW:
            lines.append(
                f"note: the last {found.days} days hold {found.test_cases:,} cases, which are few; to ask for each"
                " user's last instead, --set data.split.kind=leave_one_out"
            )
    one = "basket" if baskets else "interaction"
    if question.users_with_one > 0.5:
        lines.append(
            f"note: {100 * question.users_with_one:.0f} % of the users have one {one}: nothing is asked of them"
        )
    return lines
