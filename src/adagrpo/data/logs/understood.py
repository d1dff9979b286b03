"""What was understood of the files of a log: kept in `summary.json`, and said, so that nothing is guessed silently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from adagrpo.data.columns import TIMESTAMP
from adagrpo.data.logs.formats import SEPARATORS, kind_of, separator_of
from adagrpo.data.logs.times import Times, moment, unit_of
from adagrpo.data.logs.unpacking import NOT_UTF_8, SAVE_AS_UTF_8, encoding_of

__all__ = ["file_format", "sentences", "time_format", "two_units"]


def file_format(path: Path) -> dict[str, Any]:
    """How a file is written: its kind; of text the encoding and whether it is packed; of CSV the separator."""
    kind = kind_of(path)
    described: dict[str, Any] = {"file": path.name, "format": kind}
    if kind == "Parquet":
        return described
    if kind == "CSV":
        described["separator"] = separator_of(path)
    return described | {"encoding": encoding_of(path), "packed": path.name.lower().endswith(".gz")}


def time_format(table: pl.DataFrame, source: str, times: Times) -> dict[str, Any] | None:
    """How the times of some rows are written, and from when to when they are; None where no time was read."""
    if TIMESTAMP not in table.columns or len(table) == 0 or times.kind is None:
        return None
    low, high = (float(value) for value in (table[TIMESTAMP].min(), table[TIMESTAMP].max()))  # type: ignore[arg-type]
    described: dict[str, Any] = {"column": source, "written_as": times.kind}
    unit = "seconds" if times.kind == "ISO 8601" else unit_of(low, high)
    if times.kind == "ISO 8601":
        described["without_offset"] = times.naive
    ends = [unit_of(low, low), unit_of(high, high)]
    if unit is None and None not in ends:
        described["units"] = ends
    described |= {"unit": unit, "first": table[TIMESTAMP].min(), "last": table[TIMESTAMP].max()}
    return described | ({} if unit is None else {"from": moment(low, unit), "to": moment(high, unit)})


def two_units(understood: dict[str, Any]) -> str | None:
    """What to say of times of two units, by which nothing is in order; None where they look like those of one."""
    units = understood.get("time", {}).get("units")
    if units is None:
        return None
    return f"the lowest look like {units[0]} since 1970 and the highest like {units[1]}: write all in one unit"


def sentences(understood: dict[str, Any]) -> list[str]:
    """What was understood, a line for each file and one for the times."""
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
    if time is not None:
        line = f"times ({time['column']}): "
        if time["written_as"] == "ISO 8601":
            line += "dates and times, read as seconds since 1970"
        else:
            looks = f"which look like {time['unit']} since 1970" if time["unit"] else "of a unit that is not known"
            line += f"numbers, kept as they are, {looks}"
            mixed = two_units(understood)
            line += "" if mixed is None else f"; {mixed}"
        line += f"; from {time.get('from', time['first'])} to {time.get('to', time['last'])}"
        if time.get("without_offset"):
            line += f"; {time['without_offset']:,} have no offset and are read as UTC"
        lines.append(line)
    return lines
