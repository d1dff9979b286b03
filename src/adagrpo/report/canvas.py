"""The sheet that a chart is drawn on: opened by matplotlib, and written as an `<svg>` that stands inside a page.

Text stays text, and the same input gives the same bytes: ids are salted with the title, there is no date, and places
are rounded to hundredths of a pixel. We depart from matplotlib's file by what a page cannot have: a prologue, style
rules for everything, links to namespaces, and ids that two charts share. Nothing imports matplotlib before a chart is
drawn.
"""

from __future__ import annotations

import re
import sys
import textwrap
import warnings
from collections.abc import Callable
from functools import wraps
from io import StringIO
from typing import TYPE_CHECKING, Any, ParamSpec
from xml.etree import ElementTree

import numpy as np

from adagrpo.report.theme import DARK, GRID, INK, QUIET, SURFACE, chart_rules

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

WIDTH, HEIGHT = 460, 300  # narrow enough for a phone, where a wider drawing would shrink its text
FONT, LINE = 13, 18
TITLE_LENGTH, LEGEND_LENGTH, NAME_LENGTH = 50, 58, 30  # characters of a line, and of a name
MARKERS = ("o", "s", "^", "D", "v", "P", "*", "<", "X", ">", "p", "h")
KEPT = 256  # charts
TIP = "tip:"
SVG = "{http://www.w3.org/2000/svg}"
XLINK = "{http://www.w3.org/1999/xlink}"
PLACES = ("d", "x", "y", "transform")
COLORS = re.compile(r"(?:fill|stroke): #\w+;? ?")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar sign is one
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so that measures are the same everywhere
    "font.size": FONT,
    "text.color": INK,
    "figure.facecolor": SURFACE,
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
    """Keep what a function has drawn: a page is written after each step of a process, and most of it is unchanged."""
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
        title: stands above the chart, and is what it is called where it is not seen.
        description: what it shows, for those who do not see it.
        paint: draws on the axes; what it labels stands in a legend below them.
        width: in pixels.
        height: in pixels, without the title and the legend.
        notes: what stands above the legend.
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
    return _for_pages(text.getvalue(), title, _clean(description))


def empty(title: str) -> str:
    """Say that there is nothing to draw."""

    def paint(axes: Axes) -> None:
        axes.axis("off")
        axes.text(0, 0.5, "No values to draw.", color=QUIET, va="center")

    return draw(title, "No values to draw.", paint, height=40)


def standalone(svg: str) -> str:
    """The content of a file of a chart, which follows the reader's colour scheme by itself."""
    rules = chart_rules(color for color in DARK if color in svg)
    return svg.replace("<title>", f"<style>svg{{color-scheme:light dark}}\n{rules}</style><title>", 1) + "\n"


def tip(text: str) -> str:
    """The id of a mark that shows a text on hovering."""
    return TIP + _clean(text)


def in_percent(axis: Axis) -> None:
    """Print the fractions of an axis in per cent."""
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))


def name_axes(axes: Axes, x_label: str, y_label: str, *, percent: bool) -> None:
    """Name both axes, the upward one above it, where it needs no turning; shares stay between 0 and 100 %."""
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
    """As much of a text as some characters hold, without what XML forbids."""
    return _clean(text if len(text) <= length else text[: length - 1] + "…")


def _clean(text: str) -> str:
    """The text without the control characters that XML forbids."""
    return "".join(character if character.isprintable() or character == "\n" else " " for character in text)


def _for_pages(file: str, title: str, description: str) -> str:
    """The element of matplotlib's file, named and described, without what a page cannot have."""
    root = ElementTree.fromstring(file)
    for element in root.iter():
        for place in [*element]:
            if place.find(f"{SVG}style") is not None:
                element.remove(place)
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
        name = element.get("id", "")
        element.text, element.tail = (text if text and text.strip() else None for text in (element.text, element.tail))
        if element.tag == "g":
            element.attrib.pop("id", None)
        if name.startswith(TIP):
            _titled(element, "title", name.removeprefix(TIP))
        element.attrib.pop("clip-path", None)
        if (link := element.attrib.pop(f"{XLINK}href", None)) is not None:
            element.set("href", link)
        for key in PLACES:
            if key in element.attrib:
                element.set(key, _rounded(element.attrib[key]))
    for element in root.iter("defs"):
        for shape in element.findall("clipPath"):
            element.remove(shape)
        for shape in element.findall("path"):  # takes the colours of its uses, which rules of a page can reach
            shape.set("style", COLORS.sub("", shape.get("style", "")))
    _titled(root, "desc", description)
    _titled(root, "title", title)
    width, height = root.get("viewBox", "").split()[2:]
    root.attrib |= {"width": width, "height": height, "role": "img", "aria-label": title}
    root.attrib |= {"xmlns": SVG.strip("{}"), "stroke-linejoin": "round"}
    return ElementTree.tostring(root, encoding="unicode")


def _titled(element: ElementTree.Element, tag: str, text: str) -> None:
    child = ElementTree.Element(tag)
    child.text = text
    element.insert(0, child)


def _rounded(places: str) -> str:
    return re.sub(r"-?\d+\.\d+", lambda number: f"{round(float(number[0]), 2):g}", " ".join(places.split()))
