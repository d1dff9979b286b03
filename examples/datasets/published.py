"""A public set: where it is, what is expected of it, and how what was made of it compares with that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import polars as pl

from examples.datasets.downloads import Download, Downloads
from examples.datasets.numbering import hash_lines

__all__ = ["Check", "Comparison", "Converted", "PublicSet", "compared", "hashes_of_rows"]

# what a hash of each name is blind to, said of a part whose hash of that name is the first that is as expected
SAID = {
    "numbering": "as published, numbers included",
    "sequences": "as published; users are numbered in another order",
    "contents": "as published, but for the order of some interactions, which may be of equal time",
    "shape": "lengths of users and counts of items are as published; the order of some interactions is not",
    "frequencies": "as many of each as published, numbered otherwise",
    "rows": "as published, row by row",
    "unordered rows": "as published; some rows are in another order",
}


@dataclass(frozen=True)
class Check:
    """What is known of a part of a set.

    Attributes:
        part: of what, in words.
        hashes: by name, the strictest first.
        required: whether a set in which none agrees is refused; a note otherwise.
    """

    part: str
    hashes: Mapping[str, str]
    required: bool = True


@dataclass(frozen=True)
class Converted:
    """What a reader made of the downloads."""

    tables: Mapping[str, pl.DataFrame]  # by file name
    counts: Mapping[str, int]
    hashes: Mapping[str, Mapping[str, str]]  # of each part, by name
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PublicSet:
    """An entry of the table of sets.

    Attributes:
        name: of the set and of its folder.
        what: it is, in a few words.
        page: of its publisher.
        downloads: the files to get there.
        terms: under which it may be used.
        counts: that were published of it.
        checks: of its content.
        read: from downloads to tables.
        recipe: of this project that reads the folder, if there is one.
        cautions: what to know before believing a number measured on it.
    """

    name: str
    what: str
    page: str
    downloads: tuple[Download, ...]
    terms: str
    counts: Mapping[str, int]
    read: Callable[[Downloads], Converted]
    checks: tuple[Check, ...] = ()
    recipe: str | None = None
    cautions: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Comparison:
    """What was found when a set was compared with what is known of it."""

    problems: tuple[str, ...]  # it is not the published set
    notes: tuple[str, ...]


def compared(expected: PublicSet, made: Converted) -> Comparison:
    """Compare counts and hashes with those that were published."""
    problems, notes = [], list(made.notes)
    for name, count in expected.counts.items():
        if made.counts[name] != count:
            problems.append(f"{made.counts[name]:,} {name}, published are {count:,}")
    for check in expected.checks:
        agreeing = [name for name, value in check.hashes.items() if made.hashes[check.part].get(name) == value]
        if agreeing:
            notes.append(f"{check.part}: {SAID[agreeing[0]]}")
        elif check.required and not problems:
            problems.append(f"the {check.part} are not the published ones, though their counts are")
        elif not check.required:
            notes.append(f"{check.part}: not as published")
    return Comparison(tuple(problems), tuple(notes))


def hashes_of_rows(table: pl.DataFrame) -> dict[str, str]:
    """Of a table: `rows` in their order, and `unordered rows`."""
    lines = table.select(pl.concat_str(pl.all().cast(pl.String).fill_null(""), separator=","))
    texts = lines.to_series().to_list()
    return {"rows": hash_lines(texts), "unordered rows": hash_lines(sorted(texts))}
