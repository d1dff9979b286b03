"""The numbers of a chart as a table, thinned out if long."""

from __future__ import annotations

from collections.abc import Sequence

from adagrpo.report.charts import Point, Series
from adagrpo.report.tables import MISSING, Table, format_number, is_finite

ROWS = 20


def series_table(series: Sequence[Series], x_label: str, *, percent: bool) -> Table:
    """Tabulate series as columns; beyond `ROWS` positions, evenly chosen ones and the last.

    Example:
        >>> series_table([Series("nll", [0, 5], [0.1, None]), Series("all", [5], [0.2])], "step", percent=True).rows
        (('0', '10.00 %', '–'), ('5', '–', '20.00 %'))
    """
    positions = sorted({float(x) for line in series for x in line.x if is_finite(x)})
    step = -(-len(positions) // ROWS) or 1
    kept = [*positions[:-1:step], *positions[-1:]]
    columns = [dict(zip(map(float, line.x), line.y, strict=True)) for line in series]
    rows = tuple((f"{x:g}", *(_number(column.get(x), percent=percent) for column in columns)) for x in kept)
    return Table.of((x_label, *(line.name for line in series)), rows, 0)


def points_table(points: Sequence[Point], labels: tuple[str, str], percents: tuple[bool, bool]) -> Table:
    """Tabulate points: name, checkpoint and both quantities."""
    rows = tuple(
        (
            point.name,
            "final" if point.hollow else "best or start",
            _number(point.x, percent=percents[0]),
            _number(point.y, percent=percents[1]),
        )
        for point in points
    )
    return Table.of(("arm", "checkpoint", *labels), rows, 2)


def _number(value: float | None, *, percent: bool) -> str:
    if not is_finite(value):
        return MISSING
    return f"{100 * value:.2f} %" if percent else format_number(value)
