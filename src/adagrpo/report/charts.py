"""Charts of a run as self-contained SVG text: lines, points, stacked areas.

Dense step curves are drawn as bin means, `y_j = mean of the values whose x falls in the j-th of 80 equal bins`, and the
chart says so. Colours are those of Okabe & Ito 2008, distinguishable with any common colour blindness. We depart from
plotting libraries by drawing only what a report needs: the same input gives the same bytes, text stays text, and there
is neither script nor outside resource.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from adagrpo.report import drawing as draw
from adagrpo.report.scales import bin_means, is_finite, make_axis, step_axis

__all__ = ["Point", "Series", "line_chart", "scatter_chart", "stacked_area_chart"]


@dataclass(frozen=True)
class Series:
    """A line: `x` and `y` are of one length, None or NaN in `y` is a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    style: int | None = None  # place in the palette; None takes the place in the list of series
    mark: float | None = None  # the x to put a ring on


@dataclass(frozen=True)
class Point:
    """A point; those of one name are joined in the order given, and are one entry of the legend."""

    x: float
    y: float
    name: str = ""
    style: int = 0
    hollow: bool = False
    tip: str = ""  # shown on hovering


def line_chart(series: Sequence[Series], *, title: str, x_label: str, y_label: str, percent: bool = False) -> str:
    """Lines with a label at the end of each; a series of more than 80 values is drawn as bin means.

    Args:
        series: the lines; values that are None or not finite are gaps.
        title: what the chart shows.
        x_label: the quantity across, with its unit.
        y_label: the quantity upward, with its unit.
        percent: `y` holds fractions, print them in per cent.

    Returns:
        An `<svg>` element; it says so where there is nothing to draw.

    Example:
        >>> svg = line_chart([Series("nll", [0, 1], [0.1, 0.2])], title="HR@10", x_label="step", y_label="rate")
        >>> svg.startswith("<svg"), "nll" in svg
        (True, True)
    """
    lines, widest_bin = [], 0.0
    for place, line in enumerate(series):
        xs, ys, width = bin_means(line.x, line.y)
        widest_bin = max(widest_bin, width)
        if any(y is not None for y in ys):
            lines.append((line, place if line.style is None else line.style, list(zip(xs, ys, strict=True))))
    if not lines:
        return draw.empty(title)
    names = [line.name for line, _, _ in lines]
    margin = draw.end_margin(names)
    legend, height = ([], 0) if margin else draw.legend([(line.name, style, False) for line, style, _ in lines])
    known = [(x, y) for _, _, points in lines for x, y in points if y is not None]
    top = draw.TOP + height
    y_axis = make_axis([y for _, y in known], draw.BOTTOM, top, percent=percent, cover=True)
    left = draw.left_of(y_axis)
    x_axis = step_axis([x for x, _ in known], left, draw.RIGHT_EDGE - (margin or 6))
    parts = [*draw.axes(x_axis, y_axis, x_label, y_label, top), *legend]
    ends = []
    for line, style, points in lines:
        parts += draw.line_parts(points, x_axis, y_axis, style, line.mark)
        x, y = [(x, y) for x, y in points if y is not None][-1]
        ends.append((line.name, style, (x_axis.at(x), y_axis.at(y))))
    if margin:
        parts += draw.end_labels(ends, x_axis.end)
    return draw.svg(title, f"{y_label} by {x_label}: {', '.join(names)}", _bin_note(widest_bin, x_label), parts)


def scatter_chart(
    points: Sequence[Point],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_percent: bool = False,
    y_percent: bool = False,
) -> str:
    """Points, each name in a shape and colour of its own; the legend is below.

    Args:
        points: what to draw; a point that is not finite is left out, one without a name is not in the legend.
        title: what the chart shows.
        x_label: the quantity across.
        y_label: the quantity upward.
        x_percent: `x` holds fractions.
        y_percent: `y` holds fractions.

    Returns:
        An `<svg>` element.

    Example:
        >>> "sft" in scatter_chart([Point(0.1, 0.2, "sft")], title="t", x_label="x", y_label="y")
        True
    """
    drawn = [point for point in points if is_finite(point.x) and is_finite(point.y)]
    if not drawn:
        return draw.empty(title)
    y_axis = make_axis([point.y for point in drawn], draw.BOTTOM, draw.TOP, percent=y_percent, cover=True)
    right = draw.RIGHT_EDGE - 24
    x_axis = make_axis([point.x for point in drawn], draw.left_of(y_axis), right, percent=x_percent, cover=True)
    places = [(x_axis.at(point.x), y_axis.at(point.y)) for point in drawn]
    parts = draw.axes(x_axis, y_axis, x_label, y_label, draw.TOP)
    styles = {point.name: point.style for point in drawn if point.name}
    for name, style in styles.items():
        chain = [place for point, place in zip(drawn, places, strict=True) if point.name == name]
        stroke = f'stroke="{draw.color(style)}" stroke-opacity="0.45"'
        parts.append(f'<path d="{draw.path(chain)}" fill="none" {stroke}/>')
    for point, place in zip(drawn, places, strict=True):
        parts.append(draw.marker(point.style, place, hollow=point.hollow, tip=point.tip))
    legend, height = draw.marker_legend([*styles.items()])
    return draw.svg(title, f"{y_label} against {x_label}: {', '.join(styles)}", "", [*parts, *legend], height)


def stacked_area_chart(
    x: Sequence[float],
    layers: Sequence[tuple[str, Sequence[float | None]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    percent: bool = False,
    overlay: tuple[str, Sequence[float | None]] | None = None,
) -> str:
    """Layers on top of each other, and a dashed line to compare the lowest one with.

    Args:
        x: the common positions.
        layers: name and values, the lowest first; where some are missing they count as 0, where all are it is a gap.
        title: what the chart shows.
        x_label: the quantity across.
        y_label: the quantity upward.
        percent: the values are fractions.
        overlay: name and values of the dashed line.

    Returns:
        An `<svg>` element.

    Example:
        >>> svg = stacked_area_chart([0, 1], [("in", [1, 1]), ("out", [0, 2])], title="t", x_label="x", y_label="y")
        >>> svg.count("fill-opacity")
        4
    """
    binned = [bin_means(x, values) for _, values in layers]
    positions, _, width = binned[0] if binned else ([], [], 0.0)
    stack = _stacked([values for _, values, _ in binned])
    known = [(x, row) for x, row in zip(positions, stack, strict=True) if row is not None]
    if not known:
        return draw.empty(title)
    line = list(zip(positions, bin_means(x, overlay[1])[1], strict=True)) if overlay else []
    items = [(name, 1 + place, True) for place, (name, _) in enumerate(layers)]
    legend, height = draw.legend(
        [*items, *([(overlay[0], -1, False)] if overlay and any(y is not None for _, y in line) else [])]
    )
    top = draw.TOP + height
    values = [0.0, *(row[-1] for _, row in known), *(y for _, y in line if y is not None)]
    y_axis = make_axis(values, draw.BOTTOM, top, percent=percent, cover=True)
    x_axis = step_axis([x for x, _ in known], draw.left_of(y_axis), draw.RIGHT_EDGE - 6)
    parts = [*draw.axes(x_axis, y_axis, x_label, y_label, top), *legend]
    for run in _stretches(positions, stack):
        for place in range(len(layers)):
            outline = draw.band_path([(x, row[place], row[place + 1]) for x, row in run], x_axis, y_axis)
            parts.append(f'<path d="{outline}" fill="{draw.color(1 + place)}" fill-opacity="0.8"/>')
    parts += draw.line_parts(line, x_axis, y_axis, -1)
    names = ", ".join(name for name, _ in layers)
    return draw.svg(title, f"{y_label} by {x_label}, stacked: {names}", _bin_note(width, x_label), parts)


def _stacked(layers: Sequence[Sequence[float | None]]) -> list[list[float] | None]:
    """The boundaries of the layers from 0 up at each position; None where no layer has a value."""
    stack: list[list[float] | None] = []
    for column in zip(*layers, strict=True):
        missing = all(value is None for value in column)
        stack.append(None if missing else list(itertools.accumulate((value or 0.0 for value in column), initial=0.0)))
    return stack


def _stretches(
    positions: Sequence[float], stack: Sequence[list[float] | None]
) -> list[list[tuple[float, list[float]]]]:
    """The positions with their boundaries, cut where there are none."""
    segments: list[list[tuple[float, list[float]]]] = [[]]
    for x, row in zip(positions, stack, strict=True):
        if row is None:
            segments.append([])
        else:
            segments[-1].append((x, row))
    return [run for run in segments if run]


def _bin_note(width: float, x_label: str) -> str:
    return f"Smoothed: means of bins {width:.3g} wide ({x_label})." if width else ""
