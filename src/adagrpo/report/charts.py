"""Charts of runs, as `<svg>` elements. Each name has its method's colour and a marker or dashes of its own.

Curves of more than 80 steps are drawn as means, `y_j = mean of the values whose x falls in the j-th of 80 equal bins`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from adagrpo.report.canvas import MARKERS, draw, drawn_once, empty, in_percent, name_axes, tip
from adagrpo.report.tables import is_finite
from adagrpo.report.theme import INK, LAYERS, SURFACE, method_colors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 80
FEW = 30  # points of a line that have a marker each
DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Series:
    """A line: `x` and `y` have equal lengths, None or NaN in `y` is a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    mark: float | None = None  # the x to put a ring on


@dataclass(frozen=True)
class Point:
    """A point; points with the same name are joined in order."""

    x: float
    y: float
    name: str
    hollow: bool = False
    tip: str = ""  # shown on hovering


@drawn_once
def line_chart(series: Sequence[Series], *, title: str, x_label: str, y_label: str, percent: bool = False) -> str:
    """Draw lines; a series of more than 80 values is drawn as bin means.

    Example:
        >>> svg = line_chart([Series("nll", [0, 1], [0.1, 0.2])], title="HR@10", x_label="step", y_label="rate")
        >>> svg.startswith("<svg"), "nll" in svg
        (True, True)
    """
    binned = [(line, *bin_means(line.x, line.y)) for line in series]
    known = [(line, x, y) for line, x, y, _ in binned if np.isfinite(y).any()]
    if not known:
        return empty(title)
    widest = max(width for *_, width in binned)
    names = [line.name for line, _, _ in known]

    def paint(axes: Axes) -> None:
        colors = [method_colors(names)[name] for name in names]
        for place, ((line, x, y), color) in enumerate(zip(known, colors, strict=True)):
            dashes = DASHES[colors[:place].count(color) % len(DASHES)]
            gaps = np.isnan(np.pad(y, 1, constant_values=np.nan))
            alone = gaps[:-2] & gaps[2:]
            marked = range(len(x)) if len(x) <= FEW else np.flatnonzero(alone).tolist()
            marker = MARKERS[place % len(MARKERS)]
            axes.plot(x, y, color=color, ls=dashes, lw=2, marker=marker, markevery=marked, label=line.name)
            ring = np.asarray(x == line.mark)
            axes.plot(x[ring], y[ring], "o", ms=13, mec=color, mfc="none", mew=1.5)
        _steps(axes, np.concatenate([x for _, x, _ in known]))
        name_axes(axes, x_label + _bin_note(widest, x_label), y_label, percent=percent)

    return draw(title, f"{y_label} by {x_label}: {', '.join(names)}", paint)


@drawn_once
def scatter_chart(
    points: Sequence[Point],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_percent: bool = False,
    y_percent: bool = False,
) -> str:
    """Draw points, except those that are not finite.

    Example:
        >>> "sft" in scatter_chart([Point(0.1, 0.2, "sft")], title="t", x_label="x", y_label="y")
        True
    """
    drawn = [point for point in points if is_finite(point.x) and is_finite(point.y)]
    if not drawn:
        return empty(title)
    names = list(dict.fromkeys(point.name for point in drawn))

    def paint(axes: Axes) -> None:
        colors = method_colors(names)
        for name, marker in zip(names, itertools.cycle(MARKERS)):  # markers have no end
            own, color = [point for point in drawn if point.name == name], colors[name]
            axes.plot([p.x for p in own], [p.y for p in own], color=color, alpha=0.45, lw=1)
            axes.plot([], [], marker, color=color, ms=8, label=name)
            for p in own:
                face = SURFACE if p.hollow else color
                axes.plot([p.x], [p.y], marker, ms=8, mec=color, mfc=face, mew=1.5, gid=tip(p.tip) if p.tip else None)
        if x_percent:
            in_percent(axes.xaxis)
        axes.locator_params(axis="x", nbins=6)
        name_axes(axes, x_label, y_label, percent=y_percent)

    return draw(title, f"{y_label} against {x_label}: {', '.join(names)}", paint)


@drawn_once
def stacked_area_chart(
    x: Sequence[float],
    layers: Sequence[tuple[str, Sequence[float | None]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    overlay: tuple[str, Sequence[float | None]],
) -> str:
    """Draw stacked shares, and a dashed line to compare the lowest one with.

    Args:
        layers: name and fractions, from the bottom; missing ones count as 0, or as a gap if all are missing.
        overlay: name and fractions of the dashed line.

    Example:
        >>> labels = {"title": "t", "x_label": "x", "y_label": "y"}
        >>> svg = stacked_area_chart([0, 1], [("in", [1, 1]), ("out", [0, 0])], overlay=("chance", [1, 1]), **labels)
        >>> all(f">{name}<" in svg for name in ("in", "out", "chance"))
        True
    """
    binned = [bin_means(x, values) for _, values in layers]
    places, line, width = bin_means(x, overlay[1])
    shares = np.array([y for _, y, _ in binned]).reshape(len(layers), -1)  # (layers, positions)
    known = np.isfinite(shares).any(axis=0) if layers else np.zeros(0, dtype=bool)
    if not known.any():
        return empty(title)
    tops = np.vstack([np.zeros(len(places)), np.cumsum(np.nan_to_num(shares), axis=0)])
    names = [name for name, _ in layers]

    def paint(axes: Axes) -> None:
        for place, name in enumerate(names):
            look: dict[str, Any] = {"facecolor": LAYERS[place % len(LAYERS)], "edgecolor": SURFACE, "lw": 0.8}
            axes.fill_between(places, tops[place], tops[place + 1], where=known.tolist(), label=name, **look)
        if np.isfinite(line).any():
            axes.plot(places, line, color=INK, ls="--", lw=2, label=overlay[0])
        axes.set_ylim(0, 1)
        _steps(axes, places)
        name_axes(axes, x_label + _bin_note(width, x_label), y_label, percent=True)

    return draw(title, f"{y_label} by {x_label}, stacked: {', '.join(names)}", paint)


def bin_means(
    x: Sequence[float], y: Sequence[float | None], bins: int = BINS
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Average over bins of equal width, if there are more values than bins.

    Returns each non-empty bin's mean position and mean finite value (NaN if none), and the bin width (0 if not
    averaged).

    Example:
        >>> x, y, width = bin_means([0, 1, 2, 3], [1.0, 3.0, None, 7.0], bins=2)
        >>> x.tolist(), y.tolist(), width
        ([0.5, 2.5], [2.0, 7.0], 1.5)
    """
    pairs = [(a, b if is_finite(b) else np.nan) for a, b in zip(x, y, strict=True) if is_finite(a)]
    places, values = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    if len(pairs) <= bins or not np.ptp(places) > 0:
        return places, values, 0.0
    width = float(np.ptp(places)) / bins
    _, group = np.unique(np.minimum(bins - 1, (places - places.min()) // width), return_inverse=True)
    finite = np.isfinite(values)
    counts = np.bincount(group, weights=finite)
    sums = np.bincount(group, weights=np.where(finite, values, 0.0))
    means = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
    return np.bincount(group, weights=places) / np.bincount(group), means, width


def _steps(axes: Axes, x: NDArray[np.float64]) -> None:
    whole = bool((x == np.round(x)).all())
    axes.locator_params(axis="x", nbins=6, integer=whole)
    if np.ptp(x) == 0:
        axes.set_xlim(x[0] - 1, x[0] + 1)


def _bin_note(width: float, x_label: str) -> str:
    return f"\nSmoothed: means of bins {width:.3g} wide ({x_label})." if width else ""
