"""Draw charts with matplotlib, imported only then, as inline `<svg>` elements, reproducible byte for byte."""

from __future__ import annotations

import re
import sys
import textwrap
import warnings
from collections.abc import Callable
from functools import wraps
from io import StringIO
from typing import TYPE_CHECKING, Any, ParamSpec
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from adagrpo.report.theme import GRID, INK, QUIET, SURFACE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

WIDTH, HEIGHT = 460, 300  # narrow enough for a phone, where a wider drawing would shrink its text
FONT, LINE = 13, 18
TITLE_LENGTH, LEGEND_LENGTH, NAME_LENGTH = 50, 58, 30  # characters of a line, and of a name
MARKERS = ("o", "s", "^", "D", "v", "P", "*", "<", "X", ">", "p", "h")
KEPT = 256  # charts
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


def drawn_once(chart: Callable[Content, str]) -> Callable[Content, str]:
    """Cache what a function draws: pages are rewritten after each step."""
    drawn: dict[str, str] = {}

    @wraps(chart)
    def kept(*content: Content.args, **named: Content.kwargs) -> str:
        with np.printoptions(threshold=sys.maxsize, floatmode="unique"):
            key = repr((content, named))
        if key not in drawn:
            if len(drawn) == KEPT:
                del drawn[next(iter(drawn))]
            drawn[key] = chart(*content, **named)
        return drawn[key]

    return kept


def draw(
    title: str,
    description: str,
    paint: Callable[[Axes], None],
    *,
    width: float = WIDTH,
    height: float = HEIGHT,
    notes: str = "",
) -> str:
    """Draw a chart.

    Args:
        title: also the accessible name.
        description: for readers who cannot see the chart.
        paint: draws on the axes.
        width: in pixels.
        height: in pixels, without title and legend.
        notes: text above the legend.
    """
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
        labels = [shorten(label, LEGEND_LENGTH - 4) for label in labels]
        columns = max(1, min(len(labels), LEGEND_LENGTH // (max(map(len, labels), default=0) + 6)))
        if labels:
            figure.legend(
                handles, labels, title="\n".join(below), alignment="left", loc="outside lower left", ncols=columns
            )
        height += LINE * (len(lines) + len(below) + 1.15 * -(-len(labels) // columns))
        figure.set_size_inches(width / 72, height / 72)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", metadata=nothing)
    body = "".join(text.getvalue().partition("<defs>")[1:]).replace(" xlink:href=", " href=")
    body = re.sub(rf'<g id="{TIP}([^"]*)">', r"<g><title>\1</title>", body)
    body = re.sub('(?<=<g) id="[^"]*"| clip-path="[^"]*"', "", body)  # a mark at the edge is whole
    body = re.sub(r' (?:d|x|y|transform)="[^"]*"', _rounded, body)
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


def tip(text: str) -> str:
    """Return the id of a mark that shows a text on hover."""
    return TIP + _clean(text)


def in_percent(axis: Axis) -> None:
    """Format the fractions of an axis in per cent."""
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))


def name_axes(axes: Axes, x_label: str, y_label: str, *, percent: bool) -> None:
    """Label both axes, the vertical one at the top; shares stay between 0 and 100 %."""
    axes.set_xlabel(shorten(x_label, 2 * LEGEND_LENGTH))
    axes.set_title(shorten(y_label, LEGEND_LENGTH))
    axes.grid(axis="y")
    if percent:
        in_percent(axes.yaxis)
        low, high = axes.dataLim.intervaly
        if low >= 0 and high <= 1:
            bottom, top = axes.get_ylim()
            axes.set_ylim(max(0.0, bottom), min(1.0, top) if top > 0 else 0.01)


def shorten(text: str, length: int) -> str:
    """Truncate a text, without characters that XML forbids."""
    return _clean(text if len(text) <= length else text[: length - 1] + "…")


def _clean(text: str) -> str:
    return "".join(character if character.isprintable() or character == "\n" else " " for character in text)


def _rounded(places: re.Match[str]) -> str:
    return re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.2f}", places[0].replace(" \n", " "))
