"""Write the measured rows into docs/performance.md, and what was measured beside them into benchmarks/results.md.

    python -m benchmarks.page benchmarks/results.json

Replaces what stands between the markers `<!-- measured -->` and `<!-- /measured -->`. Nothing there is a figure that no
row holds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adagrpo.errors import UserError
from adagrpo.report.tables import MISSING, Table, format_number, to_markdown

__all__ = ["beside", "between", "machines", "main", "measured", "with_measured"]

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
BESIDE = Path(__file__).parent / "results.md"
BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
MET = {True: "yes", False: "no", None: MISSING}
SCALE = "scale_"  # rows that show how a cost grows have no target


def measured(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: the rows that do not show how a cost grows, with their targets."""
    cells = [
        (row["name"], _value(row), _spread(row), row["target"], MET[row["met"]], row["against"])
        for row in _sorted(rows)
        if not row["name"].startswith(SCALE)
    ]
    header = ("row", "measured", "least – most", "target", "met", "against")
    return to_markdown(Table(header, tuple(cells), ("left", "right", "right", "right", "left", "left")))


def beside(rows: Sequence[Mapping[str, Any]]) -> str:
    """The page beside the rows: what was measured with each figure, how costs grow, and on which machines."""
    details = [line for row in _sorted(rows) if not row["name"].startswith(SCALE) and (line := _details(row))]
    parts = ["# What was measured beside each figure", *details]
    scale = [row for row in rows if row["name"].startswith(SCALE)]
    if scale:
        cells = [(row["name"].removeprefix(SCALE), _value(row), _spread(row), row["against"]) for row in scale]
        header = ("what grows", "measured", "least – most", "work")
        parts.append(to_markdown(Table(header, tuple(cells), ("left", "right", "right", "left"))))
    return "\n\n".join([*parts, "Measured on: " + "; ".join(machines(rows)) + "."]) + "\n"


def _sorted(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(rows, key=lambda row: str(row["name"]))


def with_measured(page: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The page with the rows between its markers; see `between`."""
    return between(page, rows, lambda: measured(rows))


def between(page: str, rows: Sequence[Mapping[str, Any]], text: Callable[[], str]) -> str:
    """The page with a text about rows between its markers.

    Raises:
        UserError: a marker is missing, or there is no row.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"the page has no {BEGIN} with {END} behind it, between which the rows belong")
    if not rows:
        raise UserError("no row was measured; run python -m benchmarks first")
    return f"{before}{BEGIN}\n\n{text()}\n\n{END}{after}"


def main() -> None:
    """Rewrite the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    rows = json.loads(options.rows.read_text(encoding="utf-8"))
    page = options.page.read_text(encoding="utf-8")
    options.page.write_text(with_measured(page, rows), encoding="utf-8")
    BESIDE.write_text(beside(rows), encoding="utf-8")


def _value(row: Mapping[str, Any]) -> str:
    return f"{format_number(row['value'])} {row['unit']}"


def _spread(row: Mapping[str, Any]) -> str:
    if row["spread"] is None:
        return "one run"
    least, most = row["spread"]
    return "one run" if least == most else f"{format_number(least)} – {format_number(most)}"


def _details(row: Mapping[str, Any]) -> str:
    """What was measured beside the figure, on one line."""
    flat: dict[str, Any] = {}
    for name, value in row["detail"].items():
        flat |= {f"{name} {key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
    numbers = {name: format_number(value) if isinstance(value, float) else str(value) for name, value in flat.items()}
    text = ", ".join(f"{name.replace('_', ' ')} {number}" for name, number in numbers.items())
    return f"- `{row['name']}`: {text}" if text else ""


def machines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each machine, thread count, version and commit once, with how many rows it gave."""
    result: dict[str, int] = {}
    for row in rows:
        threads = f"{row['threads']} thread{'s' if row['threads'] != 1 else ''}"
        text = f"{row['machine']}, {threads}, torch {row['versions']['torch']}, commit {row['commit']}"
        result[text] = result.get(text, 0) + 1
    return [f"{text} ({count} row{'s' if count != 1 else ''})" for text, count in result.items()]


if __name__ == "__main__":
    main()
