"""Pieces of SVG that the charts are put together from: axes, lines, markers, legends.

Text widths are estimates, since no font is at hand: 0.56 of the font size a character, somewhat more than the average
of common sans-serif fonts, so that what is taken to fit does fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from adagrpo.report.scales import Axis
from adagrpo.report.theme import COLORS, GRID, INK, QUIET, SURFACE

__all__ = [
    "BOTTOM",
    "RIGHT_EDGE",
    "TOP",
    "WIDTH",
    "axes",
    "band_path",
    "clean",
    "color",
    "empty",
    "end_labels",
    "end_margin",
    "left_of",
    "legend",
    "line_parts",
    "marker",
    "marker_legend",
    "path",
    "runs",
    "shorten",
    "svg",
    "text",
    "text_width",
]

WIDTH, HEIGHT = 460, 340  # narrow enough for a phone, where a wider drawing would shrink its text
TOP, BOTTOM = 64, 292
RIGHT_EDGE = WIDTH - 14
FONT = 13
DASHES = ("", "7 3", "2 3")
OVERLAY_DASH = "6 4"
# what tells points apart without their colour: outlines around (0, 0)
MARKERS = (
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
    "M-4 -4h8v8h-8z",
    "M0 -5.2L5 3.8H-5z",
    "M0 -5.8L5.2 0L0 5.8L-5.2 0z",
    "M0 5.2L5 -3.8H-5z",
    "M-1.7 -5h3.4v3.3h3.3v3.4h-3.3v3.3h-3.4v-3.3h-3.3v-3.4h3.3z",
    "M0 -6L1.5 -2L5.7 -1.9L2.4 .8L3.5 4.9L0 2.5L-3.5 4.9L-2.4 .8L-5.7 -1.9L-1.5 -2z",
    "M-5.2 0L3.8 -5V5z",
    "M-4.7 -2.4L-2.4 -4.7L0 -2.3L2.4 -4.7L4.7 -2.4L2.3 0L4.7 2.4L2.4 4.7L0 2.3L-2.4 4.7L-4.7 2.4L-2.3 0z",
    "M5.2 0L-3.8 -5V5z",
    "M-6 -2.2h12v4.4h-12z",
    "M-2.2 -6h4.4v12h-4.4z",
)
LEGEND_ROW = 18
LINE_GAP = 15  # between labels below each other
LEADER = 26  # from the end of a line to its label
LONGEST_LABEL = 130
TITLE_LINE = 18

Place = tuple[float, float]


def axes(x_axis: Axis, y_axis: Axis, x_label: str, y_label: str, top: float) -> list[str]:
    """Grid, ticks and axis titles; the title of the upward axis stands above it, where it needs no turning."""
    left, right = x_axis.start, x_axis.end
    parts = [text(8, top - 14, y_label, "start", QUIET)]
    for value, label in zip(y_axis.ticks, y_axis.texts(), strict=True):
        y = y_axis.at(value)
        parts.append(f'<path d="M{left:.1f} {y:.1f}H{right:.1f}" stroke="{GRID}"/>')
        parts.append(text(left - 7, y + 4, label, "end", QUIET))
    for value, label in zip(x_axis.ticks, x_axis.texts(), strict=True):
        x = x_axis.at(value)
        parts.append(f'<path d="M{x:.1f} {BOTTOM}v5" stroke="{QUIET}"/>')
        parts.append(text(x, BOTTOM + 19, label, "middle", QUIET))
    parts.append(f'<path d="M{left:.1f} {BOTTOM}H{right:.1f}" stroke="{QUIET}"/>')
    parts.append(text((left + right) / 2, BOTTOM + 39, x_label, "middle", QUIET))
    return parts


def line_parts(
    points: Sequence[tuple[float, float | None]], x_axis: Axis, y_axis: Axis, style: int, mark: float | None = None
) -> list[str]:
    """A line with gaps; dots where the points are few or stand alone, a ring at `mark`. Style -1 is the overlay's."""
    parts = []
    for run in runs(points):
        places = [(x_axis.at(x), y_axis.at(y)) for x, y in run]
        if len(places) > 1:
            parts.append(f'<path d="{path(places)}" {_stroke(style)}/>')
        if len(points) <= 30 or len(places) == 1:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{color(style)}"/>' for x, y in places]
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6.5" fill="none" stroke="{color(style)}" stroke-width="1.5"/>'
            for (x, y), (step, _) in zip(places, run, strict=True)
            if step == mark
        ]
    return parts


def path(places: Sequence[Place]) -> str:
    """The path through some pixels."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def band_path(bands: Sequence[tuple[float, float, float]], x_axis: Axis, y_axis: Axis) -> str:
    """The outline between (x, low, high), a sliver where there is one x alone."""
    if len(bands) == 1:
        x, low, high = bands[0]
        left, right, top, bottom = x_axis.at(x) - 1.5, x_axis.at(x) + 1.5, y_axis.at(high), y_axis.at(low)
        return path([(left, top), (right, top), (right, bottom), (left, bottom)]) + "Z"
    upper = [(x_axis.at(x), y_axis.at(high)) for x, _, high in bands]
    lower = [(x_axis.at(x), y_axis.at(low)) for x, low, _ in reversed(bands)]
    return path([*upper, *lower]) + "Z"


def runs(points: Sequence[tuple[float, float | None]]) -> list[list[Place]]:
    """The stretches of points without a gap.

    Example:
        >>> runs([(0, 1.0), (1, None), (2, 3.0), (3, 4.0)])
        [[(0, 1.0)], [(2, 3.0), (3, 4.0)]]
    """
    segments: list[list[Place]] = [[]]
    for x, y in points:
        if y is None:
            segments.append([])
        else:
            segments[-1].append((x, y))
    return [run for run in segments if run]


def legend(items: Sequence[tuple[str, int, bool]]) -> tuple[list[str], int]:
    """Names with a swatch each (line or filled) in as many lines as they need.

    Returns:
        The parts and the height in pixels by which they move the plot down.
    """
    parts, x, row = [], 8.0, 0
    for name, style, filled in items:
        shown = shorten(name, 280)
        width = text_width(shown) + 42
        if x > 8 and x + width > WIDTH:
            x, row = 8.0, row + 1
        y = TOP - 22 + 18 * row
        swatch = f'fill="{color(style)}" fill-opacity="0.8"' if filled else _stroke(style)
        shape = f"M{x:.1f} {y - 9}h18v9h-18z" if filled else f"M{x:.1f} {y - 4}h22"
        parts += [f'<path d="{shape}" {swatch}/>', text(x + 27, y, shown, "start", INK)]
        x += width
    return parts, 18 * (row + 1) + 4


def end_margin(names: Sequence[str]) -> float | None:
    """The room that labels at the ends of lines need on the right, or None where they would not fit."""
    widest = max(map(text_width, names))
    return widest + LEADER + 4 if widest <= LONGEST_LABEL and len(names) * LINE_GAP <= BOTTOM - TOP else None


def end_labels(line_ends: Sequence[tuple[str, int, Place]], x: float) -> list[str]:
    """Names beside the ends of lines, with a stroke of the line's colour that leads to each.

    Args:
        line_ends: name, style and last pixel of each line.
        x: where the plot ends.
    """
    order = sorted(range(len(line_ends)), key=lambda i: line_ends[i][2][1])
    heights = _spread([line_ends[i][2][1] for i in order])
    parts = []
    for i, height in zip(order, heights, strict=True):
        name, style, (end_x, end_y) = line_ends[i]
        elbow = f"M{end_x + 4:.1f} {end_y:.1f}L{x + 8:.1f} {height:.1f}H{x + LEADER - 6:.1f}"
        parts.append(f'<path d="{elbow}" fill="none" stroke="{color(style)}" stroke-opacity="0.7"/>')
        parts.append(text(x + LEADER, height + 4, name, "start", INK))
    return parts


def marker(style: int, place: Place, *, hollow: bool = False, tip: str = "") -> str:
    """A point in the shape and colour of a style; `tip` is shown on hovering."""
    shape, ink = MARKERS[style % len(MARKERS)], color(style)
    fill = f'fill="{SURFACE if hollow else ink}" stroke="{ink}" stroke-width="1.5" stroke-linejoin="round"'
    shown = f"<title>{clean(tip)}</title>" if tip else ""
    return f'<path transform="translate({place[0]:.1f} {place[1]:.1f})" d="{shape}" {fill}>{shown}</path>'


def marker_legend(items: Sequence[tuple[str, int]]) -> tuple[list[str], int]:
    """Names behind their markers, in columns below the plot.

    Returns:
        The parts and the height in pixels that they take.
    """
    names = [shorten(name, WIDTH / 2 - 40) for name, _ in items]
    columns = max(1, int((WIDTH - 8) / (max(map(text_width, names), default=0.0) + 34)))
    rows = -(-len(names) // columns)
    parts = []
    for place, (name, (_, style)) in enumerate(zip(names, items, strict=True)):
        x, y = 16 + place // rows * (WIDTH - 8) / columns, HEIGHT + 10 + LEGEND_ROW * (place % rows)
        parts += [marker(style, (x, y)), text(x + 12, y + 4.5, name, "start", INK)]
    return parts, LEGEND_ROW * rows + 4


def svg(title: str, description: str, note: str, parts: Sequence[str], below: int = 0, height: int = HEIGHT) -> str:
    """The whole chart around its parts; a legend below the plot takes `below` pixels, and the note's place."""
    footer = [text(RIGHT_EDGE, height + 8, note, "end", QUIET)] if note else []
    height += 16 if note else below
    return _wrap(title, f"{description}. {note}".strip(), height, [*parts, *footer])


def empty(title: str) -> str:
    """A chart without values says so."""
    return _wrap(title, "No values to draw.", 64, [text(8, 46, "No values to draw.", "start", QUIET)])


def color(style: int) -> str:
    """The colour of a place in the palette."""
    return COLORS[0] if style < 0 else COLORS[style % len(COLORS)]


def text_width(text: str) -> float:
    """A cautious estimate in pixels."""
    return 0.56 * FONT * len(text)


def left_of(y_axis: Axis) -> float:
    """Where a plot begins: right of the widest text of its upward axis."""
    return 20 + max(map(text_width, y_axis.texts()))


def clean(text: str) -> str:
    """Escaped for XML, without the control characters that XML forbids."""
    return escape("".join(character if character.isprintable() else " " for character in text))


def _spread(heights: Sequence[float]) -> list[float]:
    """Ascending heights moved apart to `LINE_GAP`, and no lower than the plot's end."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + LINE_GAP) if placed else height)
    limit = float(BOTTOM)
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], limit)
        limit = placed[i] - LINE_GAP
    return placed


def _stroke(style: int) -> str:
    dash = OVERLAY_DASH if style < 0 else DASHES[style // len(COLORS) % len(DASHES)]
    pattern = f' stroke-dasharray="{dash}"' if dash else ""
    return f'fill="none" stroke="{color(style)}" stroke-width="2" stroke-linejoin="round"{pattern}'


def shorten(text: str, pixels: float) -> str:
    """As much of a text as some pixels hold."""
    longest = int(pixels / (0.56 * FONT))
    return text if len(text) <= longest else text[: longest - 1] + "…"


def text(x: float, y: float, content: str, anchor: str, fill: str, *, bold: bool = False) -> str:
    """A piece of text at a place; `anchor` says which of its ends, or its middle, stands there."""
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}"{weight}>{clean(content)}</text>'


def _title_lines(title: str) -> list[str]:
    """The title in one line, or in two where it is too long for one."""
    longest, words = int((WIDTH - 20) / (0.56 * FONT)), title.split(" ")
    count = len(words)
    while count > 1 and len(" ".join(words[:count])) > longest:
        count -= 1
    lines = [" ".join(words[:count]), " ".join(words[count:])]
    return [shorten(line, WIDTH - 20) for line in lines if line]


def _wrap(title: str, description: str, height: int, parts: Sequence[str]) -> str:
    lines = _title_lines(title)
    heading = [text(8, 20 + TITLE_LINE * place, line, "start", INK, bold=True) for place, line in enumerate(lines)]
    lower = TITLE_LINE * (len(lines) - 1)
    height += max(0, lower)
    body = "".join(parts) if lower <= 0 else f'<g transform="translate(0 {lower})">{"".join(parts)}</g>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
        f' role="img" aria-label="{clean(title)}"'
        f' font-family="system-ui, sans-serif" font-size="{FONT}" style="font-variant-numeric:tabular-nums">'
        f"<title>{clean(title)}</title><desc>{clean(description)}</desc>"
        f'<rect width="{WIDTH}" height="{height}" fill="{SURFACE}"/>' + "".join(heading) + body + "</svg>"
    )
