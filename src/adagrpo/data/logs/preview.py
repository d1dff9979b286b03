"""Preview logs and item tables: columns, roles guessed from names and values, and what is read and lost."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from adagrpo.data.columns import ITEM_ID, TIMESTAMP, USER_ID
from adagrpo.data.logs.interactions import Columns, Refusals, read_logs
from adagrpo.data.logs.log_fields import Times, iso_seconds, two_units
from adagrpo.data.logs.question import duplicates_note, future_note, ids_note, question_of
from adagrpo.errors import UserError
from adagrpo.readers.cells import UNREADABLE, blank_to_null, booleans, first_list, numbers, slots
from adagrpo.readers.chunks import read_chunks
from adagrpo.readers.formats import NOT_UTF_8, SAVE_AS_UTF_8, SEPARATORS, columns_of, kind_of, listed, one_line

DATES, COMMAS = "dates and times", "numbers with decimal commas"
DECIMAL = r"^[-+]?(?:\d{1,3}(?:\.\d{3})+|\d+)(?:,(\d+))?$"  # 12,50 or 1.250,00
ROWS = 200_000  # of each file, by default
SAMPLE = 10_000  # rows that types and roles are scored by
OWN_VALUES = 0.5  # share of values that differ, from which on a text says what an item is
OBJECTS = r"^\s*\[[\s\[]*\{"  # a list of JSON objects, which says nothing of an item
WITH_DIGITS = 0.98  # share of rows whose item ids have a digit, from which on ids without one are taken for no items
KINDS = 12  # of events, that are listed
FITS = 0.9  # share of the values that a role must fit
ANY_NUMBER_OF_ROWS = 2**62
NAMES = {  # the best name of a role first
    "user": "user_id user uid userid customer_id customer visitor_id visitor member_id member account_id account "
    "client_id shopper_id shopper buyer_id buyer user_no user_number customer_no customer_number customer_nr "
    "customer_key reviewer_id reviewerid session_id session sessionid",
    "item": "item_id item iid itemid sku stock_code product_id product asin parent_asin movie_id movieid movie "
    "article_id article video_id video track_id track song_id business_id isbn poi_id content_id "
    "item_no item_number product_no product_number product_code article_no article_number article_nr",
    "basket": "basket_id basket order_id order_no order_number invoice_id invoice_no invoice_number invoice "
    "transaction_id transaction_no transaction receipt_id receipt_no receipt ticket_id cart_id",
    "quantity": "quantity qty units",
    "timestamp": "timestamp ts time event_time time_ms datetime date created_at ordered_at purchased_at shown_at "
    "viewed_at order_time order_date unix_time unixreviewtime day",
    "clicked": "clicked click is_click was_clicked label",
    "order": "order sequence seq step position",  # without clicks; with them a position is a slot
    "event": "event event_type action behavior behaviour event_name type",
    "rating": "rating stars score overall",
    "slot": "slot rank position",
    "propensity": "propensity propensity_score",
}
NEEDS = {  # the values of a role
    "user": "one id in each row",
    "item": "one id in each row",
    "event": "one text in each row",
    "timestamp": "times",
    "clicked": "1 and 0, or true and false",
    "slot": "whole numbers from 0",
}


def preview_logs(
    paths: Sequence[Path],
    rows: int | None = ROWS,  # rows of each file to read; None for all
    given: Mapping[str, str] | None = None,  # known columns by role, as in `Columns`
    keep_events: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Preview log files of equal columns; UserError for an unreadable file, or a missing given column.

    JSON-able: `columns`, `roles` (by role: column, reason), `passed_over` (columns named like a role whose values do
    not fit), `missing` (roles), `unread_time` (first unreadable row of a column named like a time), `unnamed` (a CSV
    header holds numbers); if no role is missing also `understood`, `counts`, `lost`, `notes` and `kind`.
    """
    path = Path(paths[0])
    sample = _sample(path)
    if not len(sample):
        raise UserError(f"{path}: no rows; a log has at least one interaction")
    columns = [_column(values) for values in sample]
    roles = _roles(sample, dict(given or {}))
    preview: dict[str, Any] = {"files": [str(path) for path in paths], "columns": columns, "roles": roles}
    over = preview["passed_over"] = []  # columns named like a role whose values do not fit
    for role, known in NAMES.items():
        needs_clicks = role in ("slot", "propensity") and "clicked" not in roles
        if role not in roles and not needs_clicks and not (role == "order" and "timestamp" in roles):
            named = _named(known, sample.columns, roles)[:1]
            over += [{"column": name, "role": role, "needs": NEEDS.get(role, "numbers")} for name in named]
    preview["events"] = []
    if "event" in roles:
        events = blank_to_null(sample[roles["event"]["column"]]).drop_nulls().cast(pl.String).rename("kind")
        counts = events.value_counts().sort("count", "kind", descending=[True, False])
        preview["events"] = counts["kind"].head(KINDS).to_list()
    preview["lists"] = "item" in roles and first_list(blank_to_null(sample[roles["item"]["column"]])) is not None
    missing = [role for role in ("user", "item") if role not in roles]
    if not {"timestamp", "order", "clicked"} & roles.keys():
        missing.append("timestamp")
    preview["missing"], preview["kept"] = missing, None if keep_events is None else list(keep_events)
    preview["unread_time"] = None
    column = next((one["column"] for one in over if one["role"] == "timestamp"), None)
    if missing[:1] == ["timestamp"] and column is not None:
        values, times = blank_to_null(sample[column]), Times()
        if not values.dtype.is_nested() and values.dtype not in UNREADABLE:
            for row in (times.read(values).is_null() & values.is_not_null()).arg_true().head(1):
                value = f"{one_line(column)} is '{one_line(str(values[row]))}'"
                preview["unread_time"] = f"row {row + 1}: {value}, expected {times.expected}"
    preview["unnamed"] = kind_of(path) == "CSV" and numbers(pl.Series(sample.columns)).count() > 0
    return preview if missing else preview | _counted(paths, roles, rows, keep_events)


def roles_of(path: Path, given: Mapping[str, str] | None) -> dict[str, str]:
    """Return a file's columns by role; `given` are known ones."""
    return {role: entry["column"] for role, entry in _roles(_sample(path), dict(given or {})).items()}


def has_rows(path: Path) -> bool:
    """Return whether a file has more than names of columns."""
    return not _sample(path).is_empty()


def preview_items(path: Path, item: str) -> dict[str, Any]:
    """Preview an item table: `path`, `id_column`, `text`, `attributes`, and `commas` with an example by column.

    Mostly distinct texts are `text`; repeated ones and lists are `attributes`, lists of integers only if in one column.
    `commas` are columns with decimal commas, which the readers do not parse. `item` is the logs' id column. UserError
    if no column looks like the ids.
    """
    sample = _sample(path)
    names = sample.columns
    found = _roles(sample, {"item": item} if item in names else {}).get("item")
    if found is None:
        raise UserError(
            f"{path}: no column looks like the ids of the items; rename it as in the logs, {one_line(item)},"
            f" of {listed(names)}"
        )
    known = {name: blank_to_null(sample[name]).drop_nulls() for name in names if name != found["column"]}
    types = {name: _type(values) for name, values in known.items()}
    commas = {name: known[name].filter(known[name].str.contains(","))[0] for name in types if types[name] == COMMAS}
    texts = [name for name in types if types[name] == "text"]
    texts = [name for name in texts if not known[name].cast(pl.String).str.contains(OBJECTS).any()]
    inner_types = {name: dtype.inner for name, dtype in sample.schema.items() if isinstance(dtype, pl.List | pl.Array)}
    numbered = [name for name, inner in inner_types.items() if inner.is_integer()]
    labels = [name for name, inner in inner_types.items() if inner == pl.String]
    labels += numbered if len(numbered) == 1 else []
    own = [name for name in texts if known[name].n_unique() > OWN_VALUES * len(known[name])]
    return {
        "path": str(path),
        "id_column": found["column"],
        "text": own,
        "attributes": [name for name in names if name in labels or (name in texts and name not in own)],
        "commas": commas,
    }


def _sample(path: Path) -> pl.DataFrame:  # the first rows, without the parents of nested fields
    names = columns_of(path)
    nested = {name.rpartition(".")[0] for name in names if "." in name}
    return next(read_chunks(path, [name for name in names if name not in nested])).table.head(SAMPLE)


def _column(column: pl.Series) -> dict[str, Any]:
    values = blank_to_null(column)
    known = values.drop_nulls()
    examples = [one_line(str(value)) for value in known.head(100).unique(maintain_order=True).head(3).to_list()]
    return {"name": column.name, "type": _type(known), "empty": values.null_count(), "examples": examples}


def _type(values: pl.Series) -> str:
    if len(values) == 0:
        return "empty"
    if values.dtype in (pl.Date, pl.Datetime):
        return DATES
    if values.dtype != pl.String and not values.dtype.is_numeric():
        return str(values.dtype)
    read = numbers(values)
    if _most(read):
        return "whole numbers" if read.dtype.is_integer() else "numbers"
    if values.dtype == pl.String and _most(iso_seconds(values)):
        return DATES
    if _most(booleans(values)):
        return "true and false"
    return COMMAS if values.dtype == pl.String and _have_commas(values) else "text"


def _have_commas(values: pl.Series) -> bool:
    """Detect decimal commas, but not lists like `3,12`."""
    texts = values.str.strip_chars()
    decimals = texts.str.extract(DECIMAL).drop_nulls()
    if len(decimals) == 0 or (texts.str.count_matches(",", literal=True) > 1).any():
        return False
    usual = int(np.bincount(decimals.str.len_chars().to_numpy()).max())
    return int(texts.str.contains(DECIMAL).sum()) >= FITS * len(texts) and usual >= FITS * len(decimals)


def _most(read: pl.Series) -> bool:
    return len(read) - read.null_count() >= FITS * len(read)


def _fits(role: str, values: pl.Series) -> bool:
    known = blank_to_null(values).drop_nulls()
    if len(known) == 0 or known.dtype.is_nested() or known.dtype in UNREADABLE:
        return False
    if role in ("user", "item", "basket", "event"):
        return not known.dtype.is_temporal()
    read = {"timestamp": Times().read, "clicked": booleans, "slot": slots}.get(role, numbers)
    return _most(read(known))


def _roles(sample: pl.DataFrame, given: dict[str, str]) -> dict[str, dict[str, Any]]:
    names = sample.columns
    for name in given.values():
        if name not in names:
            raise UserError(f"no column '{one_line(name)}'; the columns are {', '.join(map(one_line, names))}")
    roles = {role: {"column": name, "reason": "as you said", "given": True} for role, name in given.items()}
    for role, known in NAMES.items():
        if role in roles or (role == "order" and "timestamp" in roles):
            continue
        if role == "order" and "clicked" in roles:
            known = known.removesuffix(" position")
        if role in ("slot", "propensity") and "clicked" not in roles:
            continue
        column = next((name for name in _named(known, names, roles) if _fits(role, sample[name])), None)
        if column is not None:
            roles[role] = {"column": column, "reason": "its name, and its values fit", "given": False}
    if "timestamp" not in roles:
        taken = {entry["column"] for entry in roles.values()}
        dated = [name for name in names if name not in taken and _type(sample[name]) == DATES]
        if len(dated) == 1:
            roles["timestamp"] = {"column": dated[0], "reason": f"the only column of {DATES}", "given": False}
            if not roles.get("order", {"given": True})["given"]:
                del roles["order"]
    return roles


def _named(known: str, names: Sequence[str], roles: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Columns without a role, named like one of `known`, best first."""

    def plain(name: str) -> str:
        return re.sub(r"[^a-z0-9]", "", name.lower())

    order = {name: rank for rank, name in enumerate(dict.fromkeys(map(plain, known.split())))}
    taken, ranks = {entry["column"] for entry in roles.values()}, {}
    for name in (name for name in names if name not in taken):
        fields = name.split(".")
        parts = (plain("".join(fields[start:])) for start in range(len(fields)))
        ranks[name] = min(order.get(part, len(order)) for part in parts)
    return sorted((name for name in ranks if ranks[name] < len(order)), key=ranks.__getitem__)


def _counted(
    paths: Sequence[Path], roles: Mapping[str, Mapping[str, Any]], rows: int | None, keep_events: Sequence[str] | None
) -> dict[str, Any]:
    mapping = Columns(**{role: entry["column"] for role, entry in roles.items()})
    ordered = mapping.timestamp is not None or mapping.order is not None
    logs = read_logs(
        paths,
        mapping,
        ordered=ordered,
        keep_events=keep_events,
        max_bad_rows=ANY_NUMBER_OF_ROWS,
        refuse=Refusals(lists=False),  # which are said
        first_rows=rows,
    )
    table = logs.interactions
    keys = [name for name in (USER_ID, ITEM_ID, logs.time_key) if name in table.columns]
    users, items = table.group_by(USER_ID).len(), table[ITEM_ID].unique()
    per_user = users["len"].to_numpy()
    pairs = table.select(USER_ID, ITEM_ID).n_unique()
    shown = logs.impressions
    duplicates = len(table) - table.select(keys).n_unique() if ordered else None
    counts = {
        "rows": logs.rows_read,
        "interactions": len(table),
        "impressions": 0 if shown is None else len(shown),
        "users": len(per_user),
        "items": len(items),
        "interactions_a_user": {
            "median": int(np.median(per_user)),
            "95 % have at most": int(np.quantile(per_user, 0.95, method="higher")),
            "most": int(per_user.max()),
        },
        "repeats_of_user_and_item": len(table) - pairs,
        "exact_duplicates": duplicates,
        "same_user_and_time_as_another": (
            int(table.group_by(USER_ID, TIMESTAMP).len()["len"].replace(1, 0).sum())
            if TIMESTAMP in table.columns
            else None
        ),
        "users_with_fewer_than_3": int((per_user < 3).sum()),
    }
    named = table[ITEM_ID].cast(pl.String).rename("id").value_counts()
    without = named.filter(~named["id"].str.contains(r"\d"))
    few = len(without) > 0 and int(without["count"].sum()) <= (1 - WITH_DIGITS) * int(named["count"].sum())
    kind = pl.col("reason").str.replace(r" is '(?s).*', expected", " is not as expected,").alias("kind")
    lost = logs.rejects.group_by(kind, maintain_order=True).agg(
        pl.len().alias("rows"), pl.col("row").first().alias("first_row"), pl.col("reason").first().alias("example")
    )
    notes = (duplicates_note(duplicates), ids_note(users[USER_ID], items), future_note(logs, time.time()))
    return {
        "kind": "interactions" if shown is None else "impressions",
        "mapping": {role: name for role, name in mapping.model_dump().items() if name is not None},
        "understood": logs.understood,
        "counts": counts,
        "lost": lost.drop("kind").sort("rows", descending=True, maintain_order=True).to_dicts(),
        "notes": [note for note in notes if note is not None],
        "has_time": TIMESTAMP in table.columns,
        "left_out": logs.left_out,
        # ids without a digit, such as POST, in a log whose other ids have one
        "no_items": without.sort("count", "id", descending=[True, False])["id"].to_list() if few else [],
        "question": question_of(logs) if ordered else None,
    }


def format_lines(understood: Mapping[str, Any]) -> list[str]:
    """Describe the files and times of logs, from `Logs.understood`."""
    lines = []
    for file in understood["files"]:
        line = f"{file['file']}: {file['format']}"
        if "separator" in file:
            line += f", separated by {SEPARATORS[file['separator']]}"
        if "encoding" in file:
            line += f", {file['encoding']}" + (", gzip" if file["packed"] else "")
        if "rows" in file:
            line += f", {'the first ' if file.get('only_first') else ''}{file['rows']:,} rows"
        lines.append(line + (f"; {SAVE_AS_UTF_8}" if file.get("encoding") == NOT_UTF_8 else ""))
    time = understood.get("time")
    if time is None:
        return lines
    if time["written_as"] == "ISO 8601":
        written = "dates and times, read as seconds since 1970"
    else:
        unit = f"which look like {time['unit']} since 1970" if time["unit"] else "of a unit that is not known"
        written = f"numbers, kept as they are, {unit}"
    parts = [written, two_units(time), f"from {time.get('from', time['first'])} to {time.get('to', time['last'])}"]
    if time.get("without_offset"):
        parts.append(f"{time['without_offset']:,} have no offset and are read as UTC")
    return [*lines, f"times ({time['column']}): " + "; ".join(filter(None, parts))]
