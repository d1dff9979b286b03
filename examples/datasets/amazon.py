"""Amazon reviews of 2014 and 2018, 5-core: `reviews_X_5.json.gz` and `meta_X.json.gz` to sequences and an item table.

2014, as in S3-Rec (https://github.com/RUCAIBox/CIKM2020-S3Rec, data/data_process.py). Users are numbered in the order
of the review file. Each one's reviews are sorted by day and keep the order of the file within a day, which is the order
of ASINs. Items are numbered as they first occur in the sequences. The 5-core file is taken as it is.

2018, as in CollisionGenRec (https://github.com/Nishikata97/CollisionGenRec, data_process/preprocess_amazon.py). Items
without metadata go, of a user's reviews of one item the earliest stays, and the 5-core is taken anew. Equal days are
in the order of ASINs.

A line is JSON or, in the metadata of 2014, a Python literal. A literal is parsed and never evaluated.
"""

from __future__ import annotations

import ast
import html
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from adagrpo.data.columns import ITEM_ID
from adagrpo.errors import UserError
from examples.datasets.downloads import Downloads
from examples.datasets.numbering import (
    Event,
    counts_of,
    hash_lines,
    hashes_of,
    interaction_table,
    k_core,
    number_items,
)
from examples.datasets.published import Converted

__all__ = ["AttributeRule", "Table2014", "read_2014", "read_2018"]

LONGEST_LITERAL = 2**20  # bytes of a line that is parsed as Python
WORDS = 8  # of a title in `short_text`
LONGEST_DESCRIPTION = 1500  # characters
LONGEST_TEXT_2018 = 2000  # characters from which on a text is dropped
TEXTS = ("title", "brand", "description")
ASIN_FIRST = re.compile(rb"""\{['"]asin['"]: ['"]([0-9A-Z]{10})['"]""")
TAG = re.compile(r"</?\w[^>]*>")


@dataclass(frozen=True)
class AttributeRule:
    """Which of an item's brand and categories are attributes, and how they are numbered: as they first occur.

    Attributes:
        least: occurrences in all items; those with fewer are none.
        skip: so many leading names of each category path are left out.
        without_brand: the attribute of an item whose record has no brand, if it gets one.
    """

    least: int
    skip: int
    without_brand: str | None = None


@dataclass(frozen=True)
class Table2014:
    """What the item table of a set has.

    Attributes:
        columns: of the table, in this order.
        attributes: their rule, if there is a column of them.
        by_asin: whether items are numbered by ASIN; as they first occur otherwise.
    """

    columns: tuple[str, ...]
    attributes: AttributeRule | None = None
    by_asin: bool = False


def read_2014(downloads: Downloads, category: str, table: Table2014) -> Converted:
    """A set of 2014.

    Args:
        downloads: hold `reviews_<category>_5.json.gz` and `meta_<category>.json.gz`.
        category: as in the names of the files.
        table: what the set's item table has.

    Raises:
        UserError: a file is missing or a line of it is not of its format.
    """
    by_user: dict[str, list[Event]] = {}
    for event in _reviews(downloads, f"reviews_{category}_5.json.gz"):
        by_user.setdefault(event.user, []).append(event)
    sequences = [[event.item for event in sorted(events, key=_time)] for events in by_user.values()]
    numbers = number_items([sorted({a for s in sequences for a in s})] if table.by_asin else sequences)
    records = _records_2014(downloads, f"meta_{category}.json.gz", numbers.keys())
    texts = {asin: _texts_2014(records.get(asin, {})) for asin in numbers}
    items = pl.DataFrame(
        {
            ITEM_ID: pl.Series(range(len(numbers)), dtype=pl.Int32),
            "asin": list(numbers),
            **{name: [texts[asin][name] for asin in numbers] for name in next(iter(texts.values()), {})},
        },
        schema_overrides={"categories": pl.List(pl.String)},
    )
    tables = {"interactions.parquet": interaction_table([[numbers[a] for a in s] for s in sequences])}
    hashes = {"sequences": hashes_of(sequences)}
    if table.attributes is not None:
        ids, names = attributes_of(records, table.attributes)
        items = items.with_columns(pl.Series("attributes", [ids.get(a, []) for a in numbers], dtype=pl.List(pl.Int32)))
        tables["attributes.parquet"] = pl.DataFrame(
            {"attribute_id": pl.Series(range(len(names)), dtype=pl.Int32), "name": pl.Series(names, dtype=pl.String)}
        )
        hashes["attributes"] = hashes_of_attributes({asin: ids.get(asin, []) for asin in numbers})
    tables["items.parquet"] = items.select(table.columns)
    unknown = len(numbers) - len(records)
    notes = (f"{unknown:,} items have no record in meta_{category}.json.gz",) if unknown else ()
    return Converted(tables, counts_of(sequences), hashes, notes)


def read_2018(downloads: Downloads, category: str) -> Converted:
    """A set of 2018.

    Args:
        downloads: hold `<category>_5.json.gz` and `meta_<category>.json.gz`.
        category: as in the names of the files.

    Raises:
        UserError: a file is missing or a line of it is not of its format.
    """
    events = list(_reviews(downloads, f"{category}_5.json.gz"))
    records = _records_2018(downloads, f"meta_{category}.json.gz", {event.item for event in events})
    kept: dict[tuple[str, str], tuple[int, Event]] = {}
    for row, event in enumerate(events):
        earlier = kept.get((event.user, event.item))
        if event.item in records and (earlier is None or event.time < earlier[1].time):
            kept[event.user, event.item] = (row, event)
    in_order = [event for _, event in sorted(kept.values(), key=lambda entry: entry[0])]
    by_user: dict[str, list[Event]] = {}
    for event in k_core(in_order, 5):
        by_user.setdefault(event.user, []).append(event)
    sequences = [[e.item for e in sorted(events, key=lambda e: (e.time, e.item))] for events in by_user.values()]
    numbers = number_items(sequences)
    rows = [records[asin] for asin in numbers]
    items = pl.DataFrame(
        {
            ITEM_ID: pl.Series(range(len(numbers)), dtype=pl.Int32),
            **{name: [row[name] for row in rows] for name in ("title", "brand", "categories", "description")},
            "asin": list(numbers),
        }
    )
    numbered = [[numbers[asin] for asin in sequence] for sequence in sequences]
    tables = {"interactions.parquet": interaction_table(numbered), "items.parquet": items}
    return Converted(tables, counts_of(sequences), {"sequences": anonymous_hashes(numbered)})


def anonymous_hashes(numbered: Sequence[Sequence[int]]) -> dict[str, str]:
    """Hashes of sequences of which only numbers are known: with the numbers, and of lengths and counts alone."""
    counts = Counter(item for sequence in numbered for item in sequence)
    shape = [" ".join(map(str, sorted(map(len, numbered)))), " ".join(map(str, sorted(counts.values())))]
    return {"numbering": hash_lines(" ".join(map(str, s)) for s in numbered), "shape": hash_lines(shape)}


def hashes_of_attributes(ids: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Hashes of items' attributes by ASIN: with their numbers, and of how often each occurs."""
    counts = Counter(one for some in ids.values() for one in some)
    return {
        "numbering": hash_lines(sorted(" ".join([asin, *map(str, some)]) for asin, some in ids.items())),
        "frequencies": hash_lines(map(str, sorted(counts.values()))),
    }


def attributes_of(
    records: Mapping[str, Mapping[str, Any]], rule: AttributeRule
) -> tuple[dict[str, list[int]], list[str]]:
    """Attribute numbers of each item, in the order brand, then each category path; and the names of the numbers.

    Args:
        records: by ASIN, in the order of the metadata file.
        rule: what counts.
    """
    named = {}
    for asin, record in records.items():
        paths = [name for path in record.get("categories", []) for name in path[rule.skip :]]
        # None stands for no brand: an item without one is no item of the brand "Unknown", which exists
        named[asin] = [record.get("brand"), *paths] if "brand" in record or rule.without_brand else paths
    counts = Counter(name for names in named.values() for name in names)
    numbers = number_items([[n for n in names if counts[n] >= rule.least] for names in named.values()])
    ids = {asin: [numbers[n] for n in names if n in numbers] for asin, names in named.items()}
    return ids, [rule.without_brand or "" if name is None else name for name in numbers]


def _time(event: Event) -> int:
    return event.time


def _reviews(downloads: Downloads, name: str) -> Iterator[Event]:
    for number, line in enumerate(downloads.lines(name), start=1):
        if not line.strip():
            continue
        record = _record(line, name, number, downloads)
        user, item, time = record.get("reviewerID"), record.get("asin"), record.get("unixReviewTime")
        if not isinstance(user, str) or not isinstance(item, str) or not isinstance(time, int):
            raise UserError(f"{name}, line {number}: is no review (reviewerID, asin, unixReviewTime)")
        yield Event(user, item, time)


def _record(line: bytes, name: str, number: int, downloads: Downloads) -> dict[str, Any]:
    """A line as JSON or, if it is none, as a Python literal."""
    text = line.decode("utf-8", errors="replace")
    try:
        try:
            record = json.loads(text)
        except ValueError:
            if len(line) > LONGEST_LITERAL:
                raise
            record = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise UserError(
            f"{name}, line {number}: is neither JSON nor a Python literal, perhaps cut off; {downloads.expected()}"
        ) from error
    if not isinstance(record, dict):
        raise UserError(f"{name}, line {number}: is no record with fields; {downloads.expected()}")
    return record


def _records_2014(downloads: Downloads, name: str, wanted: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The wanted records by ASIN, in the order of the file; of a repeated one the last, in the place of the first."""
    known = frozenset(wanted)
    records: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(downloads.lines(name), start=1):
        first = ASIN_FIRST.match(line)
        if not line.strip() or (first is not None and first[1].decode() not in known):
            continue  # nineteen of twenty lines, without a look at the rest of them
        record = _record(line, name, number, downloads)
        asin = record.get("asin")
        if isinstance(asin, str) and asin in known:
            texts = {key: record[key] for key in TEXTS if isinstance(record.get(key), str)}
            records[asin] = texts | {"categories": _paths(record.get("categories"))}
    return records


def _paths(value: object) -> list[list[str]]:
    """Category paths; what is none is left out."""
    paths = value if isinstance(value, list) else []
    return [[name for name in path if isinstance(name, str)] for path in paths if isinstance(path, list)]


def _texts_2014(record: Mapping[str, Any]) -> dict[str, Any]:
    title, brand = _plain(record.get("title")), _plain(record.get("brand"))
    names = list(dict.fromkeys(name for path in record.get("categories", []) for name in path))
    words = re.findall(r"\w+", (title or " ".join([brand or "", *names[-1:]])).lower())
    return {
        "short_text": " ".join(words[:WORDS]),
        "title": title,
        "brand": brand,
        "categories": names,
        "description": (_plain(record.get("description")) or "")[:LONGEST_DESCRIPTION] or None,
    }


def _plain(text: object) -> str | None:
    """A text without markup, in single spaces; None where there is none."""
    return " ".join(TAG.sub(" ", html.unescape(text)).split()) or None if isinstance(text, str) else None


def _records_2018(downloads: Downloads, name: str, wanted: set[str]) -> dict[str, dict[str, str]]:
    """Texts of the wanted items by ASIN; of a repeated record the last."""
    records = {}
    for number, line in enumerate(downloads.lines(name), start=1):
        if not line.strip():
            continue
        record = _record(line, name, number, downloads)
        asin, brand = record.get("asin"), record.get("brand")
        if isinstance(asin, str) and asin in wanted:
            records[asin] = {
                "title": _sentence(record.get("title")),
                "brand": brand.replace("by\n", "").strip() if isinstance(brand, str) else "",
                "categories": ",".join(_categories_2018(record.get("category", []))),
                "description": _sentence(record.get("description"))[:LONGEST_DESCRIPTION],
            }
    return records


def _categories_2018(names: Sequence[Any]) -> Iterator[str]:
    """The names of a path, up to the first that is markup."""
    for name in names if isinstance(names, list) else ():
        if not isinstance(name, str) or "</span>" in name:
            return
        yield name.strip()


def _sentence(text: object) -> str:
    """A text without markup and quotation marks, ended by one full stop; nothing of one that is too long."""
    parts = text if isinstance(text, list) else [text]
    cleaned = " ".join(
        re.sub(r'["\n\r]', "", TAG.sub("", html.unescape(part))).strip() for part in parts if isinstance(part, str)
    )
    sentence = cleaned.rstrip(".") + "."
    return "" if len(sentence) >= LONGEST_TEXT_2018 else sentence
