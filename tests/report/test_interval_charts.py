"""Charts of estimates: what is drawn stands where its number says."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from adagrpo.report.interval_charts import Band, Cell, Estimate, interval_chart, interval_list, map_chart
from adagrpo.report.theme import COLORS, GRID, INK, QUIET, SURFACE, chart_rules

SVG = "{http://www.w3.org/2000/svg}"
LABELS = {"title": "A title", "x_label": "weight", "y_label": "change"}
NUMBER = r"-?\d+(?:\.\d+)?"


def parsed(svg: str) -> ElementTree.Element:
    root = ElementTree.fromstring(svg)
    assert root.findtext(f"{SVG}title") and root.findtext(f"{SVG}desc")
    return root


def texts(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def whiskers(root: ElementTree.Element, way: str) -> list[tuple[float, float, float]]:
    """(fixed, from, to) of the lines of intervals, which are two pixels wide."""
    found = []
    for path in root.iter(f"{SVG}path"):
        line = re.fullmatch(rf"M({NUMBER}) ({NUMBER}){way}({NUMBER})", path.get("d", ""))
        if line and path.get("stroke-width") == "2":
            x, y, end = map(float, line.groups())
            found.append((x, y, end) if way == "V" else (y, x, end))
    return found


def test_intervals_stand_at_their_numbers() -> None:
    band = Band("ranker", [Estimate(0.5, 0.25, 1.0), None, Estimate(0.0, 0.0, 0.25)], 1)
    root = parsed(interval_chart(["few", "some", "many"], [band], reference=0.0, **LABELS))
    (first, low, high), (third, bottom, top) = whiskers(root, "V")
    assert first < third
    # the axis is linear: .25 to 1 is three times as long as 0 to .25, and both lie on one line
    assert low - high == pytest.approx(3 * (bottom - top), rel=1e-2) and low == pytest.approx(top, abs=0.11)
    assert {"few", "some", "many", "weight", "change", "ranker"} <= set(texts(root))


def test_a_category_without_an_estimate_cuts_the_line() -> None:
    values = [Estimate(0.1), Estimate(0.2), None, Estimate(0.3)]
    lines = [
        path
        for path in parsed(interval_chart(["a", "b", "c", "d"], [Band("x", values, 1)], **LABELS)).iter(f"{SVG}path")
        if path.get("stroke-width") == "1.5" and path.get("fill") == "none"
    ]
    assert [path.get("d", "").count("L") for path in lines] == [1, 0]
    apart = parsed(interval_chart(["a", "b", "c", "d"], [Band("x", values, 1, joined=False)], **LABELS))
    assert not [path for path in apart.iter(f"{SVG}path") if path.get("fill") == "none" and path.get("stroke-width")]


def test_a_list_is_read_against_its_reference() -> None:
    rows = [
        ("nll, best", Estimate(0.02, -0.01, 0.05), 1),
        ("a name that is far too long for its place", Estimate(0.0), 2),
    ]
    root = parsed(interval_list(rows, title="t", x_label="points", percent_points=True))
    ((_, low, high),) = whiskers(root, "H")
    dashed = next(path.get("d", "") for path in root.iter(f"{SVG}path") if path.get("stroke-dasharray"))
    zero = float(dashed[1:].split()[0])
    assert (zero - low) / (high - low) == pytest.approx(1 / 6, abs=0.01)  # -1 of -1 .. 5 points
    assert any(text.endswith("…") for text in texts(root)) and "nll, best" in texts(root)
    assert "No values to draw." in texts(parsed(interval_list([], title="t", x_label="x")))


def test_the_colour_of_a_cell_is_its_gain_or_loss() -> None:
    cells = [[Cell(0.1, ("+10.0", "9 cases")), Cell(-0.2, ("-20.0", "3 cases")), Cell(None, ("–", "0 cases"))]]
    svg = map_chart(["hard"], ["low", "middle", "high"], cells, title="t", row_label="d", column_label="q", largest=0.2)
    boxes = [path for path in parsed(svg).iter(f"{SVG}path") if path.get("d", "").endswith("z")]
    assert [(box.get("fill"), box.get("fill-opacity")) for box in boxes] == [
        (COLORS[1], "0.29"),
        (COLORS[2], "0.54"),
        ("none", None),
    ]
    assert "hard, low: +10.0, 9 cases; hard, middle: -20.0, 3 cases" in svg


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "\"&'", "a\x00b", "x" * 300])
def test_names_are_escaped(name: str) -> None:
    drawn = [
        interval_chart([name], [Band(name, [Estimate(1.0, 0.0, 2.0)], 1)], title=name, x_label=name, y_label=name),
        interval_list([(name, Estimate(1.0), 1)], title=name, x_label=name),
        map_chart([name], [name], [[Cell(1.0, (name,))]], title=name, row_label=name, column_label=name, largest=1.0),
    ]
    for svg in drawn:
        parsed(svg)
        assert "<script" not in svg


def luminance(color: str) -> float:
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_every_colour_has_a_dark_one_that_is_read() -> None:
    """WCAG wants a contrast of 4.5 for text; what is drawn has it too."""
    pairs = dict(re.findall(r"fill: light-dark\((#\w+), (#\w+)\)", chart_rules()))
    assert set(pairs) == {INK, QUIET, GRID, SURFACE, *COLORS}

    def contrast(color: str) -> float:
        bright, dim = sorted((luminance(pairs[color]), luminance(pairs[SURFACE])), reverse=True)
        return (bright + 0.05) / (dim + 0.05)

    assert all(contrast(color) >= 4.5 for color in (INK, QUIET, *COLORS))
