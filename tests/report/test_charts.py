"""Charts hold what a reader must find: title, names, values at their places, and no link."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from adagrpo.report.charts import (
    LAYERS,
    METHODS,
    OTHERS,
    SURFACE,
    Band,
    ForestRow,
    IntervalMark,
    Point,
    Series,
    bin_means,
    forest_chart,
    interval_chart,
    line_chart,
    method_colors,
    scatter_chart,
    stacked_area_chart,
)

SVG = "{http://www.w3.org/2000/svg}"
LABELS = {"title": "A title", "x_label": "step", "y_label": "HR@10"}


def parsed(svg: str) -> ElementTree.Element:
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg" and root[0].tag == f"{SVG}title" and root[1].tag == f"{SVG}desc"
    assert root.get("role") == "img" and root.get("aria-label") == root[0].text
    assert not re.search(r"nan|inf\b", re.sub(r"<(title|desc|text)\b.*?</\1>", "", svg))
    assert "<script" not in svg and not re.search(r"https?:", svg.replace('xmlns="http://www.w3.org/2000/svg"', ""))
    ids = [element.get("id") for element in root.iter() if "id" in element.attrib]
    assert len(ids) == len(set(ids)) and {use.get("href", "")[1:] for use in root.iter(f"{SVG}use")} <= {*ids}
    return root


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in parsed(svg).iter(f"{SVG}text")]


def lines(svg: str, color: str, width: str = "2") -> list[list[tuple[float, float]]]:
    """The points of each line of a colour and width."""
    paths = [path for path in parsed(svg).iter(f"{SVG}path") if f"stroke: {color}" in path.get("style", "")]
    drawn = [path.get("d", "") for path in paths if re.search(rf"stroke-width: {width}\b", path.get("style", ""))]
    return [[(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", d)] for d in drawn]


def test_a_line_chart_has_title_description_ticks_and_names() -> None:
    svg = line_chart([Series("nll", [0, 10], [0.1, 0.2]), Series("grpo", [0, 10], [0.1, 0.05])], **LABELS)
    assert parsed(svg)[1].text == "HR@10 by step: nll, grpo"
    assert {"A title", "step", "HR@10", "nll", "grpo", "10"} <= set(texts(svg))
    shares = texts(line_chart([Series("nll", [0, 1], [0.0, 0.5])], percent=True, **LABELS))
    assert {"0 %", "50 %"} <= set(shares) and not any(text.startswith("−") for text in shares)


def test_a_chart_is_drawn_again_only_where_a_value_is_another() -> None:
    x, y = np.arange(3000.0), np.zeros(3000)
    first = line_chart([Series("nll", x, y)], **LABELS)
    assert line_chart([Series("nll", x.copy(), y.copy())], **LABELS) is first
    y[1500] = 1e-3
    assert line_chart([Series("nll", x, y)], **LABELS) != first


@pytest.mark.parametrize("y", [[], [None, None], [math.nan, math.inf]])
def test_no_values_are_said_to_be_none(y: list[float | None]) -> None:
    steps = list(range(len(y)))
    for svg in (
        line_chart([Series("nll", steps, y)], **LABELS),
        line_chart([], **LABELS),
        stacked_area_chart(steps, [("a", y)], overlay=("b", y), **LABELS),
        scatter_chart([Point(math.nan, 1.0, "a")], **LABELS),
        interval_chart(["a"], [Band("x", [None])], reference=0.0, **LABELS),
        forest_chart([], title="t", x_label="x"),
    ):
        assert "No values to draw." in texts(svg)


@pytest.mark.parametrize("value", [0.0, 0.1, -3.0, 1e-9, 1e12])
@pytest.mark.parametrize("count", [1, 3])
def test_single_points_and_constant_series_are_drawn(value: float, count: int) -> None:
    for percent in (False, True):
        svg = line_chart([Series("nll", list(range(count)), [value] * count)], percent=percent, **LABELS)
        markers = [use for use in parsed(svg).iter(f"{SVG}use") if "#0072b2" in use.get("style", "")]
        assert len(markers) == count + 1  # one in the legend


def test_gaps_cut_the_line() -> None:
    y = [1.0, 2.0, math.nan, 3.0, None, 5.0, 6.0]
    drawn = lines(line_chart([Series("nll", list(range(7)), y)], **LABELS), "#0072b2")
    assert len(drawn[0]) == 5  # without the two gaps
    dense = [1.0, None, 1.0, *([None] * 40)]  # too many for a marker each: those that stand alone have one
    svg = line_chart([Series("nll", list(range(43)), dense)], **LABELS)
    assert len([use for use in parsed(svg).iter(f"{SVG}use") if "#0072b2" in use.get("style", "")]) == 3


def test_dense_series_are_smoothed_and_the_chart_says_so() -> None:
    sparse, dense = (line_chart([Series("a", list(range(n)), [1.0] * n)], **LABELS) for n in (80, 801))
    assert not any("Smoothed" in text for text in texts(sparse))
    assert "Smoothed: means of bins 10 wide (step)." in texts(dense)


def test_bin_means_against_a_loop() -> None:
    x = [float(i) for i in range(500)]
    y = [None if i % 7 == 0 else math.sin(i) for i in range(500)]
    xs, ys, width = bin_means(x, y, bins=10)
    assert width == pytest.approx(49.9)
    for place in range(10):
        inside = [i for i in range(500) if min(9, int(i / width)) == place]
        assert xs[place] == pytest.approx(sum(inside) / len(inside), rel=1e-12)
        assert ys[place] == pytest.approx(np.mean([math.sin(i) for i in inside if i % 7]), rel=1e-9)
    assert np.isnan(bin_means([0, 1, 2, 3], [None, math.nan, 2.0, 4.0], bins=2)[1]).tolist() == [True, False]


def test_a_ring_marks_the_best_step() -> None:
    ringed, plain = (line_chart([Series("nll", [0, 5], [1.0, 2.0], mark)], **LABELS) for mark in (5, None))
    parsed(ringed)
    assert ringed.count("<use ") == plain.count("<use ") + 1


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "\"&'", "a\x00b\x1b", "x" * 500, "$a_b$", "a\nb"])
def test_names_are_written_as_they_are(name: str) -> None:
    labels = {"title": name, "x_label": name, "y_label": name}
    estimate = IntervalMark(1.0, 0.0, 2.0)
    drawn = [
        line_chart([Series(name, [0, 1], [0.1, 0.2])], **labels),
        scatter_chart([Point(0.1, 0.2, name, tip=name)], **labels),
        stacked_area_chart([0, 1], [(name, [0.1, 0.2])], overlay=(name, [0.1, 0.1]), **labels),
        line_chart([], **labels),
        interval_chart([name], [Band(name, [estimate])], reference=0.0, **labels),
        forest_chart([ForestRow(name, {name: estimate}, name)], title=name, x_label=name, names={name: name}),
    ]
    for svg in drawn:
        parsed(svg)
        assert name != "$a_b$" or name in texts(svg)


def test_equal_input_gives_equal_bytes_and_no_date() -> None:
    points = [Point(0.1 * i, 0.2, f"p{i}") for i in range(9)]
    svg = scatter_chart(points, **LABELS)
    assert svg == scatter_chart(points, **LABELS)
    assert "<metadata" not in svg and not re.search(r"20\d\d-\d\d", svg)


def test_charts_of_one_page_share_no_id() -> None:
    first, second = (line_chart([Series("nll", [0], [1.0])], **LABELS | {"title": title}) for title in "ab")
    assert not {*re.findall(r'\bid="(\w+)"', first)} & {*re.findall(r'\bid="(\w+)"', second)}


def test_a_scatter_joins_a_name_and_hollows_the_final_point() -> None:
    points = [Point(0.1, 0.2, "nll"), Point(0.3, 0.1, "nll", True, "nll, final")]
    svg = scatter_chart(points, x_percent=True, **LABELS)
    marks = [use.get("style", "") for use in parsed(svg).iter(f"{SVG}use") if "stroke: #0072b2" in use.get("style", "")]
    assert [f"fill: {SURFACE}" in mark for mark in marks] == [False, True, False]  # the third is the legend's
    assert "<title>nll, final</title>" in svg and texts(svg).count("nll") == 1


def test_a_stack_reaches_the_sum_of_its_layers_and_has_gaps() -> None:
    svg = stacked_area_chart([0, 1], [("in", [0.2, 0.2]), ("out", [0.8, None])], overlay=("c", [0.1, 0.2]), **LABELS)
    assert {"0 %", "100 %", "in", "out", "c"} <= set(texts(svg))
    shapes = {path.get("id"): path.get("d", "") for path in parsed(svg).iter(f"{SVG}path")}
    used = [re.search(rf'<use href="#(\w+)"[^>]*fill: {color}', svg) for color in LAYERS[:2]]
    heights = [[float(y) for y in re.findall(r"[ML] \S+ (\S+)", shapes[use[1]])] for use in used if use]
    ((low, top), (middle, high)) = ((max(part), min(part)) for part in heights)
    assert top == pytest.approx(middle, abs=0.02) and (low - top) / (low - high) == pytest.approx(0.2, abs=0.01)
    alone = stacked_area_chart([0, 1], [("a", [1.0, 1.0])], overlay=("line", [None, None]), **LABELS)
    assert "a" in texts(alone) and "line" not in texts(alone)


def test_intervals_stand_at_their_numbers() -> None:
    band = Band("ranker", [IntervalMark(0.5, 0.25, 1.0), None, IntervalMark(0.0, 0.0, 0.25)])
    svg = interval_chart(["few", "some", "many"], [band], reference=0.0, **LABELS)
    first, third = lines(svg, method_colors(["ranker"])["ranker"])
    # the axis is linear: .25 to 1 is three times as long as 0 to .25, and both meet at .25
    assert first[0][1] - first[1][1] == pytest.approx(3 * (third[0][1] - third[1][1]), rel=1e-2)
    assert first[0][1] == pytest.approx(third[1][1], abs=0.02) and first[0][0] < third[0][0]
    assert {"few", "some", "many", "ranker"} <= set(texts(svg))


def test_a_forest_is_read_against_its_reference() -> None:
    rows = [
        ForestRow("nll, best", {"nll": IntervalMark(0.02, -0.01, 0.05)}),
        ForestRow("a name that is far too long for its place", {"grpo": IntervalMark(0.0)}),
    ]
    svg = forest_chart(rows, title="t", x_label="points", percent_points=True)
    ((start, end),) = lines(svg, "#0072b2")
    dashed = next(path for path in parsed(svg).iter(f"{SVG}path") if "dasharray" in path.get("style", ""))
    zero = float(dashed.get("d", "").split()[1])
    assert (zero - start[0]) / (end[0] - start[0]) == pytest.approx(1 / 6, abs=0.01)  # -1 of -1 .. 5 points
    assert any(text.endswith("…") for text in texts(svg)) and "nll, best" in texts(svg)


def test_a_method_has_one_colour_in_every_figure() -> None:
    alone, among = method_colors(["adagrpo"]), method_colors(["x", "nll", "fair-grpo-beam", "adagrpo", "y"])
    assert alone["adagrpo"] == among["adagrpo"] and len({*among.values()}) == 5
    assert method_colors(["the paper's gate"])["the paper's gate"] == alone["adagrpo"]
    assert {*among.values()} <= {*METHODS.values(), *OTHERS}


def test_a_chart_has_a_ground_of_its_own() -> None:
    svg = line_chart([Series("nll", [0, 1], [0.1, 0.2])], **LABELS)
    first = next(parsed(svg).iter(f"{SVG}path"))
    assert first.get("style") == f"fill: {SURFACE}" and svg.endswith("</svg>\n")
    width, height = svg.split('viewBox="0 0 ', 1)[1].split('"', 1)[0].split()
    assert [float(number) for number in re.findall(r"[\d.]+", first.get("d", ""))][2:4] == [float(width), float(height)]
