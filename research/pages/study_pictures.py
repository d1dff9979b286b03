"""Charts of the tables of results on studies' pages: a row a line of the table, a mark a column with intervals."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from adagrpo.errors import UserError
from adagrpo.report.charts import ForestRow, IntervalMark, forest_chart

__all__ = ["study_pictures"]

VALUE = re.compile(r"([+-]?[\d.]+) \(([+-]?[\d.]+) (?:…|to) ([+-]?[\d.]+)\)")
HEADING = "## Results\n"


class Look(NamedTuple):
    """What the table does not say."""

    title: str
    x_label: str


LOOKS = {
    "gate_best_case": Look("The gate beats a random one in one case of six.", "true utility@10, simulated"),
    "exposed_feed": Look("Training gains on the platform's videos, not on random ones.", "AUC, points"),
}


def study_pictures(results: Path) -> dict[Path, str]:
    """The charts by file, `figures/results.svg` of each study that has a look and a page.

    Args:
        results: the folder of the studies.

    Raises:
        UserError: a page has no table of results.
    """
    pages = {name: results / name / "README.md" for name in LOOKS}
    return {
        page.parent / "figures" / "results.svg": _picture(page, LOOKS[name])
        for name, page in pages.items()
        if page.is_file()
    }


def _picture(page: Path, look: Look) -> str:
    header, *lines = _table(page)
    rows = []
    for name, *cells in lines:
        found = {column: VALUE.search(cell) for column, cell in zip(header[1:], cells, strict=True)}
        marks = {column: IntervalMark(*map(float, value.groups())) for column, value in found.items() if value}
        rows.append(ForestRow(name.replace("`", ""), marks))
    names = {column: column for column in header[1:] if any(column in row.marks for row in rows)}
    return forest_chart(rows, title=look.title, x_label=look.x_label, names=names)


def _table(page: Path) -> Iterator[list[str]]:
    """The cells of the first table below the heading, without the line of its alignment."""
    _, found, text = page.read_text(encoding="utf-8").partition(HEADING)
    lines = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    if not found or lines is None:
        raise UserError(f"{page}: no table below {HEADING.strip()}")
    for place, line in enumerate(lines[0].replace("\N{MINUS SIGN}", "-").splitlines()):
        if place != 1:
            yield [cell.strip() for cell in line.strip("|").split("|")]
