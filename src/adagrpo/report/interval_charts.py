"""Charts of estimates with their intervals: along an axis of categories, one below the other, and as cells of a map.

An interval is drawn wherever an estimate is: a mean without one says nothing about what another sample would give.
Like `adagrpo.report.charts`, everything is text, the same input gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from adagrpo.report import drawing as draw
from adagrpo.report.scales import Axis, category_axis, make_axis
from adagrpo.report.theme import COLORS, GRID, INK, QUIET

__all__ = ["Band", "Cell", "Estimate", "band_chart", "interval_chart", "interval_list", "map_chart"]

GAIN, LOSS = COLORS[1], COLORS[2]
ROW = 30  # pixels of a row of a list or of the heading of a map
CELL = 54  # pixels of the height of a cell
TOLD_APART = 0.13  # of a category's width, between the estimates of different series


class Estimate(NamedTuple):
    """A mean with its interval; None for ends that are not known."""

    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Band:
    """A series over categories; None is a category without an estimate."""

    name: str
    values: Sequence[Estimate | None]
    style: int
    joined: bool = True  # a line from category to category


@dataclass(frozen=True)
class Cell:
    """A cell of a map: what it is coloured by, and the lines written in it. None: nothing is known, no colour."""

    value: float | None
    lines: tuple[str, ...]


def interval_chart(
    categories: Sequence[str],
    bands: Sequence[Band],
    *,
    title: str,
    x_label: str,
    y_label: str,
    reference: float | None = None,
    percent: bool = False,
) -> str:
    """Estimates with intervals over an axis of categories, each series in its own colour and marker.

    Args:
        categories: their names, in order.
        bands: the series, one value a category.
        title: what the chart shows.
        x_label: what the categories are.
        y_label: the quantity upward, with its unit.
        reference: a value to draw a line at, such as no difference, or chance.
        percent: the values are fractions.

    Returns:
        An `<svg>` element; it says so where there is nothing to draw.

    Example:
        >>> band = Band("ranker", [Estimate(0.1, 0.0, 0.2), None], 1)
        >>> interval_chart(["few", "many"], [band], title="t", x_label="x", y_label="y").count("ranker")
        2
    """
    known = [value for band in bands for value in band.values if value is not None]
    if not known:
        return draw.empty(title)
    legend, height = draw.marker_legend([(band.name, band.style) for band in bands])
    ends = [end for value in known for end in value if end is not None]
    y_axis = make_axis(
        [*ends, *([reference] if reference is not None else [])], draw.BOTTOM, draw.TOP, percent=percent, cover=True
    )
    x_axis = category_axis(categories, draw.left_of(y_axis), draw.RIGHT_EDGE)
    parts = draw.axes(x_axis, y_axis, x_label, y_label, draw.TOP)
    if reference is not None:
        y = y_axis.at(reference)
        parts.append(f'<path d="M{x_axis.start:.1f} {y:.1f}H{x_axis.end:.1f}" stroke="{INK}" stroke-dasharray="5 4"/>')
    for place, band in enumerate(bands):
        shift = TOLD_APART * (place - (len(bands) - 1) / 2)
        parts += _band(band, shift, x_axis, y_axis)
    names = ", ".join(band.name for band in bands)
    return draw.svg(title, f"{y_label} by {x_label}, with intervals: {names}", "", [*parts, *legend], height)


def band_chart(
    categories: Sequence[str],
    bands: Sequence[Band],
    *,
    title: str,
    x_label: str,
    y_label: str,
    reference: float,
    percent: bool = False,
) -> str:
    """Lines over an axis of categories, each with its name at its end and its interval as an area behind it.

    Args:
        categories: see `interval_chart`.
        bands: see `interval_chart`; at least one value each.
        title: what the chart shows.
        x_label: what the categories are.
        y_label: the quantity upward.
        reference: a value to draw a line at.
        percent: the values are fractions.

    Returns:
        An `<svg>` element; it says so where there is nothing to draw.

    Example:
        >>> band = Band("ranker", [Estimate(0.1, 0.0, 0.2), Estimate(0.2)], 1)
        >>> band_chart(["1", "2"], [band], title="t", x_label="x", y_label="y", reference=0.0).count("ranker")
        2
    """
    shown = [band for band in bands if any(value is not None for value in band.values)]
    if not shown:
        return draw.empty(title)
    known = [value for band in shown for value in band.values if value is not None]
    ends = [end for value in known for end in value if end is not None]
    y_axis = make_axis([*ends, reference], draw.BOTTOM, draw.TOP, percent=percent, cover=True)
    margin = draw.end_margin([band.name for band in shown]) or 6
    x_axis = category_axis(categories, draw.left_of(y_axis), draw.RIGHT_EDGE - margin)
    parts = draw.axes(x_axis, y_axis, x_label, y_label, draw.TOP)
    y = y_axis.at(reference)
    parts.append(f'<path d="M{x_axis.start:.1f} {y:.1f}H{x_axis.end:.1f}" stroke="{INK}" stroke-dasharray="5 4"/>')
    for band in shown:
        spans = [(place, v.low, v.high) for place, v in enumerate(band.values) if v is not None]
        area = [(place, low, high) for place, low, high in spans if low is not None and high is not None]
        if area:
            outline = draw.band_path(area, x_axis, y_axis)
            parts.append(f'<path d="{outline}" fill="{draw.color(band.style)}" fill-opacity="0.13"/>')
    names = []
    for band in shown:
        points = [(place, None if value is None else value.mean) for place, value in enumerate(band.values)]
        parts += draw.line_parts(points, x_axis, y_axis, band.style)
        last, mean = [(place, mean) for place, mean in points if mean is not None][-1]
        names.append((band.name, band.style, (x_axis.at(last), y_axis.at(mean))))
    parts += draw.end_labels(names, x_axis.end)
    told = ", ".join(band.name for band in shown)
    return draw.svg(title, f"{y_label} by {x_label}, with intervals: {told}", "", parts)


def _band(band: Band, shift: float, x_axis: Axis, y_axis: Axis) -> list[str]:
    ink = draw.color(band.style)
    places = [
        None if value is None else (x_axis.at(place + shift), y_axis.at(value.mean))
        for place, value in enumerate(band.values)
    ]
    parts = []
    if band.joined:
        points = [(place[0], place[1]) if place else (0.0, None) for place in places]
        lines = (draw.path(run) for run in draw.runs(points))
        parts += [f'<path d="{line}" fill="none" stroke="{ink}" stroke-width="1.5"/>' for line in lines]
    for value, spot in zip(band.values, places, strict=True):
        if value is None or spot is None:
            continue
        if value.low is not None and value.high is not None:
            low, high = y_axis.at(value.low), y_axis.at(value.high)
            parts.append(f'<path d="M{spot[0]:.1f} {low:.1f}V{high:.1f}" stroke="{ink}" stroke-width="2"/>')
        parts.append(draw.marker(band.style, spot))
    return parts


def interval_list(
    rows: Sequence[tuple[str, Estimate, int]],
    *,
    title: str,
    x_label: str,
    percent_points: bool = False,
    reference: float = 0.0,
) -> str:
    """Estimates below each other with their intervals, against a line at a reference.

    Args:
        rows: name, estimate and style of each.
        title: what the chart shows.
        x_label: the quantity across, with its unit.
        percent_points: the values are differences of fractions, to be shown in points.
        reference: no difference, or chance.

    Returns:
        An `<svg>` element; it says so where there is nothing to draw.

    Example:
        >>> interval_list([("nll, best", Estimate(0.1, -0.1, 0.3), 1)], title="t", x_label="x").count("nll, best")
        2
    """
    if not rows:
        return draw.empty(title)
    factor = 100.0 if percent_points else 1.0
    ends = [factor * end for _, value, _ in rows for end in value if end is not None]
    names = [draw.shorten(name, draw.WIDTH * 0.42) for name, _, _ in rows]
    left = 16 + max(map(draw.text_width, names))
    x_axis = make_axis([factor * reference, *ends], left, draw.RIGHT_EDGE - 6, percent=False, cover=True)
    top = 36
    bottom = top + ROW * len(rows)
    parts = []
    for tick, label in zip(x_axis.ticks, x_axis.texts(), strict=True):
        x = x_axis.at(tick)
        parts.append(f'<path d="M{x:.1f} {top}V{bottom}" stroke="{GRID}"/>')
        parts.append(draw.text(x, bottom + 18, label, "middle", QUIET))
    line = x_axis.at(factor * reference)
    parts.append(f'<path d="M{line:.1f} {top}V{bottom}" stroke="{INK}" stroke-dasharray="5 4"/>')
    for place, (name, (_, value, style)) in enumerate(zip(names, rows, strict=True)):
        y = top + ROW * (place + 0.5)
        parts.append(draw.text(left - 10, y + 4, name, "end", INK))
        if value.low is not None and value.high is not None:
            low, high = x_axis.at(factor * value.low), x_axis.at(factor * value.high)
            parts.append(f'<path d="M{low:.1f} {y:.1f}H{high:.1f}" stroke="{draw.color(style)}" stroke-width="2"/>')
        parts.append(draw.marker(style, (x_axis.at(factor * value.mean), y)))
    parts.append(draw.text((left + draw.RIGHT_EDGE) / 2, bottom + 38, x_label, "middle", QUIET))
    return draw.svg(title, f"{x_label}: {', '.join(name for name, _, _ in rows)}", "", parts, height=bottom + 46)


def map_chart(
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[Cell]],
    *,
    title: str,
    row_label: str,
    column_label: str,
    largest: float,
) -> str:
    """A table whose cells are coloured by a gain or a loss, the stronger the larger it is.

    Args:
        rows: their names, the uppermost first.
        columns: their names.
        cells: a list a row.
        title: what the chart shows.
        row_label: what the rows are.
        column_label: what the columns are.
        largest: the absolute value with the full colour; maps to be compared have the same.

    Returns:
        An `<svg>` element.

    Example:
        >>> cells = [[Cell(0.5, ("+50.0", "8 cases")), Cell(None, ("no case",))]]
        >>> svg = map_chart(["hard"], ["low", "high"], cells, title="t", row_label="d", column_label="q", largest=1.0)
        >>> svg.count(">8 cases<"), svg.count('fill-opacity="0.29"')
        (1, 1)
    """
    left = 16 + max(map(draw.text_width, [*rows, row_label]))
    width = (draw.RIGHT_EDGE - left) / len(columns)
    top = 78
    parts = [
        draw.text((left + draw.RIGHT_EDGE) / 2, 48, column_label, "middle", QUIET),
        draw.text(left - 10, top - 10, row_label, "end", QUIET),
    ]
    for place, name in enumerate(columns):
        parts.append(draw.text(left + width * (place + 0.5), top - 10, draw.shorten(name, width), "middle", INK))
    for i, (name, line) in enumerate(zip(rows, cells, strict=True)):
        y = top + CELL * i
        parts.append(draw.text(left - 10, y + CELL / 2 + 4, name, "end", INK))
        for j, cell in enumerate(line):
            parts += _cell(cell, left + width * j, y, width, largest)
    summary = "; ".join(
        f"{name}, {column}: {', '.join(cell.lines)}"
        for name, line in zip(rows, cells, strict=True)
        for column, cell in zip(columns, line, strict=True)
    )
    return draw.svg(title, f"{row_label} by {column_label}. {summary}", "", parts, height=top + CELL * len(rows) + 12)


def _cell(cell: Cell, x: float, y: float, width: float, largest: float) -> list[str]:
    """A rectangle and its lines; half of a colour at the most, so that text is read on it in either theme."""
    box = f"M{x + 1:.1f} {y + 1:.1f}h{width - 2:.1f}v{CELL - 2}h{2 - width:.1f}z"
    fill = f'fill="none" stroke="{GRID}"'
    if cell.value is not None:
        strength = min(1.0, abs(cell.value) / largest) if largest > 0 else 0.0
        fill = f'fill="{GAIN if cell.value >= 0 else LOSS}" fill-opacity="{0.04 + 0.5 * strength:.2f}"'
    parts = [f'<path d="{box}" {fill}/>']
    first = y + CELL / 2 + 4 - 8.5 * (len(cell.lines) - 1)
    for place, line in enumerate(cell.lines):
        shown = draw.shorten(line, width)
        parts.append(draw.text(x + width / 2, first + 17 * place, shown, "middle", INK, bold=place == 0))
    return parts
