"""Charts as inline `<svg>` elements, drawn by matplotlib (imported only then), reproducible byte for byte.

A method has one colour in every chart, with a marker or dashes of each name's own. Colours are those of Okabe & Ito
2008. Curves of more than 80 steps are drawn as means, `y_j = mean of the values whose x falls in the j-th of 80 equal
bins`.
"""

from __future__ import annotations

import itertools
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from io import StringIO
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from numpy.typing import NDArray

from adagrpo.objective import GATES
from adagrpo.report.tables import is_finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

INK, QUIET, GRID, SURFACE = "#1a1a1a", "#595959", "#e3e3e3", "#ffffff"
BLUE, VERMILLION, ORANGE, GREEN, PINK, SKY = "#0072b2", "#d55e00", "#e69f00", "#009e73", "#cc79a7", "#56b4e9"
VIOLET, BROWN, GREY, TEAL, OLIVE = "#7b52ab", "#8c5a2b", "#767676", "#117a8b", "#5f7a1f"
METHODS = {  # the first of these that a name contains gives its colour
    **{name: GREY for name, gate in GATES.items() if "uniforms" in gate.reads or gate.shuffled},
    "fuse": TEAL,
    "knn": OLIVE,
    "rerank": SKY,
    "ranker": SKY,
    "re-ranked": SKY,
    "no gate": INK,
    "gate": PINK,
    "adagrpo": PINK,
    "best-of-n": BROWN,
    "best_of_n": BROWN,
    "tuned": GREEN,  # distillation with the weight from validation
    "chosen-": GREEN,
    "-chosen": GREEN,
    "distill": VIOLET,
    "mixture": ORANGE,
    "grpo": VERMILLION,
    "nll": BLUE,
    "sft": INK,
    "policy": INK,
}
OTHERS = ("#a83279", "#4b5f78", "#7a6400")  # of names that contain no method's, in the order in which they come
LAYERS = (PINK, "#5f7f9e", "#8da9c4", "#bccbd9", "#3d566e")  # of a stack, the first being what was admitted

WIDTH, HEIGHT = 460, 300  # narrow enough for a phone, where a wider drawing would shrink its text
FONT, LINE = 13, 18
TITLE_LENGTH, LEGEND_LENGTH, NAME_LENGTH = 50, 58, 30  # characters of a line, and of a name
ROW, LANE = 30, 9  # pixels: of a row of a forest, between the marks of a row
BINS = 80
FEW = 30  # points of a line that have a marker each
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "*", "<", "X", ">", "p", "h")
REFERENCE: dict[str, Any] = {"color": INK, "lw": 1, "ls": (0, (5, 4))}
CACHED = 1000  # charts
TIP = "tip:"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar sign is one
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so that measures are the same everywhere
    "font.size": FONT,
    "text.color": INK,
    "figure.facecolor": SURFACE,
    "figure.constrained_layout.w_pad": 0.1,  # inches, for the edge of the ground on a dark page
    "figure.constrained_layout.h_pad": 0.1,
    "axes.facecolor": SURFACE,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": QUIET,
    "axes.titlecolor": QUIET,
    "axes.titlelocation": "left",
    "axes.titlesize": FONT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-5, 7),
    "grid.color": GRID,
    "grid.linewidth": 1,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "ytick.left": False,
    "legend.frameon": False,
    "legend.title_fontsize": FONT,
    "legend.handlelength": 1.8,
    "lines.markersize": 6,
}
Content = ParamSpec("Content")


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


def method_colors(names: Iterable[str]) -> dict[str, str]:
    """Return the colour of each name: its method's, or the next unused one."""
    others = itertools.cycle(OTHERS)
    known = {name: next((color for key, color in METHODS.items() if key in name.lower()), None) for name in names}
    return {name: color or next(others) for name, color in known.items()}


def draw(
    title: str,
    description: str,
    paint: Callable[[Axes], None],  # draws on the axes
    *,
    width: float = WIDTH,
    height: float = HEIGHT,
    notes: str = "",  # text above the legend
) -> str:
    """Draw a chart without title and legend; the description is for readers who cannot see it."""
    import matplotlib
    from matplotlib.figure import Figure

    title, text = _clean(title), StringIO()
    wider = width / WIDTH
    lines = textwrap.wrap(title, int(TITLE_LENGTH * wider))[:3]
    below = textwrap.wrap(notes, int(LEGEND_LENGTH * wider))
    with warnings.catch_warnings(), matplotlib.rc_context({**STYLE, "svg.hashsalt": title}):
        warnings.filterwarnings("ignore", "Glyph")  # text stays text: the reader's fonts have what this one lacks
        figure = Figure(dpi=72, layout="constrained")
        figure.suptitle("\n".join(lines), x=0.01, ha="left", size=FONT, weight="bold")
        axes = figure.add_subplot()
        paint(axes)
        handles, labels = axes.get_legend_handles_labels()
        labels = [_shorten(label, LEGEND_LENGTH - 4) for label in labels]
        columns = max(1, min(len(labels), LEGEND_LENGTH // (max(map(len, labels), default=0) + 6)))
        if labels:
            figure.legend(
                handles, labels, title="\n".join(below), alignment="left", loc="outside lower left", ncols=columns
            )
        height += LINE * (len(lines) + len(below) + 1.15 * -(-len(labels) // columns))
        figure.set_size_inches(width / 72, height / 72)
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    body = "".join(text.getvalue().partition("<defs>")[1:]).replace(" xlink:href=", " href=")
    body = re.sub(rf'<g id="{TIP}([^"]*)">', r"<g><title>\1</title>", body)
    body = re.sub('(?<=<g) id="[^"]*"| clip-path="[^"]*"', "", body)  # a mark at the edge is whole

    def rounded(numbers: re.Match[str]) -> str:
        return re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.2f}", numbers[0].replace(" \n", " "))

    body = re.sub(r' (?:d|x|y|transform)="[^"]*"', rounded, body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img"'
        f' aria-label={quoteattr(title)} width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}">\n'
        f"<title>{escape(title)}</title>\n<desc>{escape(_clean(description))}</desc>\n{body}"
    )


def empty(title: str) -> str:
    """Return an empty chart that says so."""

    def paint(axes: Axes) -> None:
        axes.axis("off")
        axes.text(0, 0.5, "No values to draw.", color=QUIET, va="center")

    return draw(title, "No values to draw.", paint, height=40)


def in_percent(axis: Axis) -> None:
    """Format the fractions of an axis in per cent."""
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))


_DRAWN: dict[str, str] = {}  # charts by name and content


def _cached(chart: Callable[Content, str]) -> Callable[Content, str]:
    @wraps(chart)
    def cached(*content: Content.args, **named: Content.kwargs) -> str:
        with np.printoptions(threshold=sys.maxsize, floatmode="unique"):
            key = repr((chart.__name__, content, named))
        if key not in _DRAWN:
            if len(_DRAWN) == CACHED:
                del _DRAWN[next(iter(_DRAWN))]
            _DRAWN[key] = chart(*content, **named)
        return _DRAWN[key]

    return cached


@_cached
def line_chart(series: Sequence[Series], *, title: str, x_label: str, y_label: str, percent: bool = False) -> str:
    """Draw lines; a series of more than 80 values is drawn as bin means."""
    binned = [(line, *bin_means(line.x, line.y)) for line in series]
    known = [(line, x, y) for line, x, y, _ in binned if np.isfinite(y).any()]
    if not known:
        return empty(title)
    names = [line.name for line, _, _ in known]

    def paint(axes: Axes) -> None:
        colors = [method_colors(names)[name] for name in names]
        for index, ((line, x, y), color) in enumerate(zip(known, colors, strict=True)):
            dashes = DASHES[colors[:index].count(color) % len(DASHES)]
            gaps = np.isnan(np.pad(y, 1, constant_values=np.nan))
            alone = gaps[:-2] & gaps[2:]
            marked = range(len(x)) if len(x) <= FEW else np.flatnonzero(alone).tolist()
            marker = MARKERS[index % len(MARKERS)]
            axes.plot(x, y, color=color, ls=dashes, lw=2, marker=marker, markevery=marked, label=line.name)
            ring = np.asarray(x == line.mark)
            axes.plot(x[ring], y[ring], "o", ms=13, mec=color, mfc="none", mew=1.5)
        _name_steps(axes, np.concatenate([x for _, x, _ in known]), max(width for *_, width in binned), x_label)
        _name_values(axes, y_label, percent=percent)

    return draw(title, f"{y_label} by {x_label}: {', '.join(names)}", paint)


@_cached
def scatter_chart(
    points: Sequence[Point], *, title: str, x_label: str, y_label: str, x_percent: bool = False, y_percent: bool = False
) -> str:
    """Draw points, except those that are not finite."""
    drawn = [point for point in points if is_finite(point.x) and is_finite(point.y)]
    if not drawn:
        return empty(title)
    colors = method_colors(point.name for point in drawn)

    def paint(axes: Axes) -> None:
        for (name, color), marker in zip(colors.items(), itertools.cycle(MARKERS)):  # markers have no end
            own = [point for point in drawn if point.name == name]
            axes.plot([p.x for p in own], [p.y for p in own], color=color, alpha=0.45, lw=1)
            axes.plot([], [], marker, color=color, ms=8, label=name)
            for p in own:
                face, tip = SURFACE if p.hollow else color, TIP + _clean(p.tip) if p.tip else None
                axes.plot([p.x], [p.y], marker, ms=8, mec=color, mfc=face, mew=1.5, gid=tip)
        if x_percent:
            in_percent(axes.xaxis)
        axes.locator_params(axis="x", nbins=6)
        axes.set_xlabel(_shorten(x_label, 2 * LEGEND_LENGTH))
        _name_values(axes, y_label, percent=y_percent)

    return draw(title, f"{y_label} against {x_label}: {', '.join(colors)}", paint)


@_cached
def stacked_area_chart(
    x: Sequence[float],
    layers: Sequence[tuple[str, Sequence[float | None]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    overlay: tuple[str, Sequence[float | None]],  # name and fractions of the dashed line
) -> str:
    """Draw stacked shares and a dashed line for the lowest; missing ones count as 0, or as a gap if all are."""
    binned = [bin_means(x, values) for _, values in layers]
    steps, line, width = bin_means(x, overlay[1])
    shares = np.array([y for _, y, _ in binned]).reshape(len(layers), -1)  # (layers, steps)
    known = np.isfinite(shares).any(axis=0) if layers else np.zeros(0, dtype=bool)
    if not known.any():
        return empty(title)
    tops = np.vstack([np.zeros(len(steps)), np.cumsum(np.nan_to_num(shares), axis=0)])
    names = [name for name, _ in layers]

    def paint(axes: Axes) -> None:
        for index, name in enumerate(names):
            look: dict[str, Any] = {"facecolor": LAYERS[index % len(LAYERS)], "edgecolor": SURFACE, "lw": 0.8}
            axes.fill_between(steps, tops[index], tops[index + 1], where=known.tolist(), label=name, **look)
        if np.isfinite(line).any():
            axes.plot(steps, line, color=INK, ls="--", lw=2, label=overlay[0])
        axes.set_ylim(0, 1)
        _name_steps(axes, steps, width, x_label)
        _name_values(axes, y_label, percent=True)

    return draw(title, f"{y_label} by {x_label}, stacked: {', '.join(names)}", paint)


@_cached
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
    """Draw estimates with intervals by category, and a reference line."""
    if not any(value is not None for band in bands for value in band.values):
        return empty(title)
    names = [band.name for band in bands]

    def paint(axes: Axes) -> None:
        axes.axhline(reference, **REFERENCE)
        apart = min(0.13, 0.6 / len(bands))  # of the width of a category
        for index, band in enumerate(bands):
            color, marker = method_colors(names)[band.name], MARKERS[index % len(MARKERS)]
            x = np.arange(len(categories)) + apart * (index - (len(bands) - 1) / 2)
            means = [np.nan if value is None else value.mean for value in band.values]
            axes.plot(x, means, color=color, lw=1.5 if band.joined else 0, marker=marker, label=band.name)
            for at, value in zip(x, band.values, strict=True):
                if value is not None and value.low is not None and value.high is not None:
                    axes.plot([at, at], [value.low, value.high], color=color, lw=2)
        axes.set_xticks(range(len(categories)), [_shorten(name, NAME_LENGTH) for name in categories])
        axes.set_xlim(-0.5, len(categories) - 0.5)
        axes.set_xlabel(_shorten(x_label, 2 * LEGEND_LENGTH))
        _name_values(axes, y_label, percent=percent)

    return draw(title, f"{y_label} by {x_label}, with intervals: {', '.join(names)}", paint)


@_cached
def forest_chart(
    rows: Sequence[ForestRow],  # from top to bottom; rows with the same heading are adjacent
    *,
    title: str,
    x_label: str,
    reference: float = 0.0,
    percent_points: bool = False,  # values are differences of fractions
    names: Mapping[str, str] | None = None,  # legend names of the methods; None for no legend
) -> str:
    """Draw a forest plot with a reference line."""
    if not rows:
        return empty(title)
    names, factor = names or {}, 100.0 if percent_points else 1.0
    methods = list(names) or list(dict.fromkeys(method for row in rows for method in row.marks))
    lanes = [method for method in methods if any(method in row.marks for row in rows if len(row.marks) > 1)]
    step = max(ROW, LANE * (len(lanes) + 1))
    colors = method_colors(methods)
    lines: list[tuple[str, ForestRow | None]] = []
    for heading, group in itertools.groupby(rows, lambda row: row.heading):
        lines += [(heading, None)] if heading else []
        lines += [(row.name, row) for row in group]

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
        axes.set_yticks(range(len(lines)), [_shorten(text, NAME_LENGTH) for text, _ in lines], color=INK)
        for tick, (_, row) in zip(axes.get_yticklabels(), lines, strict=True):
            tick.set_fontweight("normal" if row else "bold")
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.locator_params(axis="x", nbins=6)
        axes.grid(axis="x")
        axes.set_xlabel(_shorten(x_label, 2 * NAME_LENGTH), loc="right")

    described = f"{x_label}: {', '.join(row.name for row in rows)}"
    return draw(title, described, paint, height=step * len(lines) + 3 * LINE)


def bin_means(
    x: Sequence[float], y: Sequence[float | None], bins: int = BINS
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Average over bins: positions, means or NaN, bin width (0: not averaged)."""
    pairs = [(a, b if is_finite(b) else np.nan) for a, b in zip(x, y, strict=True) if is_finite(a)]
    positions, values = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    if len(pairs) <= bins or not np.ptp(positions) > 0:
        return positions, values, 0.0
    width = float(np.ptp(positions)) / bins
    _, group = np.unique(np.minimum(bins - 1, (positions - positions.min()) // width), return_inverse=True)
    finite = np.isfinite(values)
    counts = np.bincount(group, weights=finite)
    sums = np.bincount(group, weights=np.where(finite, values, 0.0))
    means = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
    return np.bincount(group, weights=positions) / np.bincount(group), means, width


def _name_steps(axes: Axes, x: NDArray[np.float64], width: float, x_label: str) -> None:
    axes.locator_params(axis="x", nbins=6, integer=bool((x == np.round(x)).all()))
    if np.ptp(x) == 0:
        axes.set_xlim(x[0] - 1, x[0] + 1)
    smoothed = f"\nSmoothed: means of bins {width:.3g} wide ({x_label})." if width else ""
    axes.set_xlabel(_shorten(x_label + smoothed, 2 * LEGEND_LENGTH))


def _name_values(axes: Axes, y_label: str, *, percent: bool) -> None:
    """Label the vertical axis at its top; shares stay between 0 and 100 %."""
    axes.set_title(_shorten(y_label, LEGEND_LENGTH))
    axes.grid(axis="y")
    if percent:
        in_percent(axes.yaxis)
        low, high = axes.dataLim.intervaly
        if low >= 0 and high <= 1:
            bottom, top = axes.get_ylim()
            axes.set_ylim(max(0.0, bottom), min(1.0, top) if top > 0 else 0.01)


def _shorten(text: str, length: int) -> str:
    return _clean(text if len(text) <= length else text[: length - 1] + "…")


def _clean(text: str) -> str:
    """Replace characters that XML forbids."""
    return "".join(character if character.isprintable() or character == "\n" else " " for character in text)
