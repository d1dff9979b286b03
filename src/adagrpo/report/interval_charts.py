"""Charts of estimates with intervals: by category, or as a forest plot."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from adagrpo.report.canvas import LINE, MARKERS, NAME_LENGTH, draw, drawn_once, empty, name_axes, shorten
from adagrpo.report.theme import INK, method_colors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW, LANE = 30, 9  # pixels: of a row of a forest, between the marks of a row
REFERENCE: dict[str, Any] = {"color": INK, "lw": 1, "ls": (0, (5, 4))}


class IntervalMark(NamedTuple):
    """A mean with its interval; None for unknown ends."""

    mean: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, interval: Mapping[str, float]) -> IntervalMark:
        """Read `mean`, `low` and `high` of a result."""
        return cls(interval["mean"], interval["low"], interval["high"])

    def times(self, factor: float) -> IntervalMark:
        """Scale the mean and the ends."""
        low, high = (None if end is None else factor * end for end in (self.low, self.high))
        return IntervalMark(factor * self.mean, low, high)


@dataclass(frozen=True)
class Band:
    """A series over categories; None is a category without an estimate."""

    name: str
    values: Sequence[IntervalMark | None]
    joined: bool = True  # a line from category to category


@dataclass(frozen=True)
class ForestRow:
    """A row of a forest plot: name, estimates by method, and heading."""

    name: str
    marks: Mapping[str, IntervalMark]
    heading: str = ""


@drawn_once
def interval_chart(
    categories: Sequence[str],
    bands: Sequence[Band],
    *,
    title: str,
    x_label: str,
    y_label: str,
    reference: float,
    percent: bool = False,
) -> str:
    """Draw estimates with intervals by category, and a reference line.

    Example:
        >>> band = Band("ranker", [IntervalMark(0.1, 0.0, 0.2), None])
        >>> svg = interval_chart(["few", "many"], [band], title="t", x_label="x", y_label="y", reference=0.0)
        >>> ">ranker<" in svg, ">few<" in svg
        (True, True)
    """
    if not any(value is not None for band in bands for value in band.values):
        return empty(title)
    names = [band.name for band in bands]

    def paint(axes: Axes) -> None:
        axes.axhline(reference, **REFERENCE)
        apart = min(0.13, 0.6 / len(bands))  # of the width of a category
        for place, band in enumerate(bands):
            color, marker = method_colors(names)[band.name], MARKERS[place % len(MARKERS)]
            x = np.arange(len(categories)) + apart * (place - (len(bands) - 1) / 2)
            means = [np.nan if value is None else value.mean for value in band.values]
            axes.plot(x, means, color=color, lw=1.5 if band.joined else 0, marker=marker, label=band.name)
            for at, value in zip(x, band.values, strict=True):
                if value is not None and value.low is not None and value.high is not None:
                    axes.plot([at, at], [value.low, value.high], color=color, lw=2)
        axes.set_xticks(range(len(categories)), [shorten(name, NAME_LENGTH) for name in categories])
        axes.set_xlim(-0.5, len(categories) - 0.5)
        name_axes(axes, x_label, y_label, percent=percent)

    return draw(title, f"{y_label} by {x_label}, with intervals: {', '.join(names)}", paint)


@drawn_once
def forest_chart(
    rows: Sequence[ForestRow],
    *,
    title: str,
    x_label: str,
    reference: float = 0.0,
    percent_points: bool = False,
    names: Mapping[str, str] | None = None,
) -> str:
    """Draw a forest plot with a reference line.

    Args:
        rows: from top to bottom; rows with the same heading are adjacent.
        percent_points: values are differences of fractions.
        names: legend names of the methods; None for no legend.

    Example:
        >>> row = ForestRow("nll, best", {"nll": IntervalMark(0.1, -0.1, 0.3)})
        >>> ">nll, best<" in forest_chart([row], title="t", x_label="x")
        True
    """
    if not rows:
        return empty(title)
    names, factor = names or {}, 100.0 if percent_points else 1.0
    methods = list(names) or list(dict.fromkeys(method for row in rows for method in row.marks))
    lanes = [method for method in methods if any(method in row.marks for row in rows if len(row.marks) > 1)]
    step = max(ROW, LANE * (len(lanes) + 1))
    colors = method_colors(methods)
    lines = _with_headings(rows)

    def paint(axes: Axes) -> None:
        axes.axvline(factor * reference, **REFERENCE)
        for y, (_, row) in enumerate(lines):
            for method, value in row.marks.items() if row else ():
                lane = lanes.index(method) - (len(lanes) - 1) / 2 if method in lanes else 0.0
                mean, low, high = value.times(factor)
                at, color = y + lane * LANE / step, colors[method]
                if low is not None and high is not None:
                    axes.plot([low, high], [at, at], color=color, lw=2)
                axes.plot([mean], [at], MARKERS[methods.index(method) % len(MARKERS)], color=color, ms=7)
        for method, label in names.items():
            axes.plot([], [], color=colors[method], lw=2, marker=MARKERS[methods.index(method)], label=label)
        axes.set_yticks(range(len(lines)), [shorten(text, NAME_LENGTH) for text, _ in lines], color=INK)
        for tick, (_, row) in zip(axes.get_yticklabels(), lines, strict=True):
            tick.set_fontweight("normal" if row else "bold")
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.locator_params(axis="x", nbins=6)
        axes.grid(axis="x")
        axes.set_xlabel(shorten(x_label, 2 * NAME_LENGTH), loc="right")

    described = f"{x_label}: {', '.join(row.name for row in rows)}"
    return draw(title, described, paint, height=step * len(lines) + 3 * LINE)


def _with_headings(rows: Sequence[ForestRow]) -> list[tuple[str, ForestRow | None]]:
    lines: list[tuple[str, ForestRow | None]] = []
    for heading, group in itertools.groupby(rows, lambda row: row.heading):
        lines += [(heading, None)] if heading else []
        lines += [(row.name, row) for row in group]
    return lines
