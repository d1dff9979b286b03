import itertools
import math
import re
from xml.etree import ElementTree

import pytest

from adagrpo.report.charts import Point, Series, line_chart, scatter_chart, stacked_area_chart
from adagrpo.report.scales import bin_means, make_axis, nice_ticks

SVG = "{http://www.w3.org/2000/svg}"
LABELS = {"title": "A title", "x_label": "step", "y_label": "HR@10"}


def parsed(svg: str) -> ElementTree.Element:
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    assert not re.search(r"nan|inf\b", svg.partition("<desc>")[2].partition("</desc>")[2])
    return root


def texts(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def test_line_chart_has_title_description_ticks_and_labels() -> None:
    root = parsed(line_chart([Series("nll", [0, 10], [0.1, 0.2]), Series("grpo", [0, 10], [0.1, 0.05])], **LABELS))
    assert root.findtext(f"{SVG}title") == "A title"
    assert root.findtext(f"{SVG}desc") == "HR@10 by step: nll, grpo."
    assert {"A title", "step", "HR@10", "nll", "grpo", "0.05", "0.10", "0.15", "0.20"} <= set(texts(root))


def test_percent_ticks() -> None:
    shown = texts(parsed(line_chart([Series("nll", [0, 1], [0.0, 0.004])], percent=True, **LABELS)))
    assert {"0.0 %", "0.1 %", "0.4 %"} <= set(shown)


@pytest.mark.parametrize("y", [[], [None, None], [math.nan, math.inf]])
def test_no_values_are_said_to_be_none(y: list[float | None]) -> None:
    root = parsed(line_chart([Series("nll", list(range(len(y))), y)], **LABELS))
    assert "No values to draw." in texts(root)
    assert parsed(line_chart([], **LABELS)) is not None
    assert "No values to draw." in texts(parsed(stacked_area_chart(range(len(y)), [("a", y)], **LABELS)))
    assert "No values to draw." in texts(parsed(stacked_area_chart([], [], **LABELS)))
    assert "No values to draw." in texts(parsed(scatter_chart([Point(math.nan, 1.0, "a")], **LABELS)))


@pytest.mark.parametrize("value", [0.0, 0.1, -3.0, 1e-9, 1e12])
@pytest.mark.parametrize("count", [1, 3])
def test_single_points_and_constant_series(value: float, count: int) -> None:
    for percent in (False, True):
        root = parsed(line_chart([Series("a", list(range(count)), [value] * count)], percent=percent, **LABELS))
        assert len(root.findall(f"{SVG}circle")) == count


def test_gaps_cut_the_line_and_lone_points_show() -> None:
    y = [1.0, 2.0, math.nan, 3.0, None, 5.0, 6.0]
    svg = line_chart([Series("a", list(range(7)), y)], **LABELS)
    lines = [p for p in parsed(svg).findall(f"{SVG}path") if p.get("stroke-width") == "2"]
    assert len(lines) == 2
    assert len(parsed(svg).findall(f"{SVG}circle")) == 5


def test_dense_series_are_smoothed_and_the_chart_says_so() -> None:
    sparse, dense = (line_chart([Series("a", list(range(n)), [1.0] * n)], **LABELS) for n in (80, 801))
    assert "Smoothed" not in sparse
    assert "Smoothed: means of bins 10 wide (step)." in texts(parsed(dense))


def test_bin_means_against_a_loop() -> None:
    x = [float(i) for i in range(500)]
    y = [None if i % 7 == 0 else math.sin(i) for i in range(500)]
    xs, ys, width = bin_means(x, y, bins=10)
    assert width == pytest.approx(49.9)
    for place in range(10):
        inside = [i for i in range(500) if min(9, int(i / width)) == place]
        known = [math.sin(i) for i in inside if i % 7]
        assert xs[place] == pytest.approx(sum(inside) / len(inside), rel=1e-12)
        assert ys[place] == pytest.approx(sum(known) / len(known), rel=1e-9)


def test_bin_without_values_is_a_gap() -> None:
    assert bin_means([0, 1, 2, 3], [None, math.nan, 2.0, 4.0], bins=2)[1] == [None, 3.0]


def test_mark_draws_one_ring() -> None:
    root = parsed(line_chart([Series("a", [0, 5, 10], [1.0, 2.0, 3.0], mark=5)], **LABELS))
    assert [circle.get("r") for circle in root.findall(f"{SVG}circle")].count("6.5") == 1


def test_labels_at_the_ends_do_not_cover_each_other_and_long_ones_move_to_a_legend() -> None:
    series = [Series(f"arm{i}", [0, 1], [0.1, 0.1]) for i in range(9)]
    places = {
        element.text: float(element.get("y", "nan"))
        for element in parsed(line_chart(series, **LABELS)).iter(f"{SVG}text")
        if (element.text or "").startswith("arm")
    }
    heights = sorted(places.values())
    assert len(heights) == 9
    assert min(b - a for a, b in itertools.pairwise(heights)) >= 15 - 1e-6
    assert heights[-1] <= 320
    long = [Series("a name that is much too long to stand at the end", [0, 1], [0.1, i]) for i in range(2)]
    legend = [e for e in parsed(line_chart(long, **LABELS)).iter(f"{SVG}text") if (e.text or "").startswith("a name")]
    assert all(float(element.get("x", "nan")) < 60 for element in legend)


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "\"&'", "a\x00b\x1b", "x" * 500])
def test_labels_are_escaped(name: str) -> None:
    labels = {"title": name, "x_label": name, "y_label": name}
    svgs = [
        line_chart([Series(name, [0, 1], [0.1, 0.2])], **labels),
        scatter_chart([Point(0.1, 0.2, name, tip=name)], **labels),
        stacked_area_chart([0, 1], [(name, [0.1, 0.2])], overlay=(name, [0.1, 0.1]), **labels),
        line_chart([], **labels),
    ]
    for svg in svgs:
        parsed(svg)
        assert "<script" not in svg


def test_output_is_deterministic() -> None:
    points = [Point(0.1 * i, 0.2, f"p{i}", style=i) for i in range(9)]
    assert scatter_chart(points, **LABELS) == scatter_chart(points, **LABELS)


def test_scatter_joins_a_name_and_hollows_the_final_point() -> None:
    points = [Point(0.1, 0.2, "a", 1), Point(0.3, 0.1, "a", 1, True, "a, final")]
    root = parsed(scatter_chart(points, x_percent=True, **LABELS))
    best, final, key = (path for path in root.findall(f"{SVG}path") if path.get("transform"))
    assert [mark.get("fill") for mark in (best, final, key)] == ["#0072B2", "#ffffff", "#0072B2"]
    assert len({mark.get("d") for mark in (best, final, key)}) == 1
    assert final.findtext(f"{SVG}title") == "a, final"
    assert texts(root).count("a") == 1


def test_a_legend_below_the_plot_tells_many_names_apart_without_colour() -> None:
    names = [f"an arm of number {i}" for i in range(12)]
    root = parsed(scatter_chart([Point(0.1 * i, 0.2, name, i) for i, name in enumerate(names)], **LABELS))
    marks = [path for path in root.findall(f"{SVG}path") if path.get("transform")]
    assert len(marks) == 24 and [mark.get("d") for mark in marks[:12]] == [mark.get("d") for mark in marks[12:]]
    assert len({mark.get("d") for mark in marks[:12]}) == 12
    written = [element for element in root.iter(f"{SVG}text") if element.text in names]
    assert [element.text for element in written] == names
    boxes = [(float(element.get("x", "nan")), float(element.get("y", "nan"))) for element in written]
    width = 0.56 * 13 * max(map(len, names))
    height = float(root.get("viewBox", "").split()[3])
    for i, (x, y) in enumerate(boxes):
        assert 331 + 13 <= y <= height and x + width <= 460  # below the title of the axis
        assert all(abs(x - u) >= width + 12 or abs(y - v) >= 14 for u, v in boxes[:i])


def test_long_names_are_cut_to_two_columns() -> None:
    names = [letter * 60 for letter in "abc"]
    root = parsed(scatter_chart([Point(0.1, 0.2, name, i) for i, name in enumerate(names)], **LABELS))
    written = [element for element in root.iter(f"{SVG}text") if (element.text or "").endswith("…")]
    assert len(written) == 3 and len({element.get("y") for element in written}) == 2


def test_stack_reaches_the_sum_of_its_layers() -> None:
    svg = stacked_area_chart([0, 1], [("in", [0.2, 0.2]), ("out", [0.8, 0.8])], percent=True, **LABELS)
    bands = [
        p.get("d", "") for p in parsed(svg).findall(f"{SVG}path") if p.get("fill-opacity") and "Z" in p.get("d", "")
    ]
    outlines = [band for band in bands if not band.endswith("h-18z")]
    ys = [[float(pair.split()[1]) for pair in band.strip("MZ").split("L")] for band in outlines]
    assert ys[0][:2] == ys[1][2:]  # the top of the first is the bottom of the second
    top, bottom = ys[1][0], ys[0][-1]
    assert (bottom - ys[0][0]) / (bottom - top) == pytest.approx(0.2, rel=1e-2)
    assert {"0 %", "100 %", "in", "out"} <= set(texts(parsed(svg)))


def test_stack_has_gaps_and_takes_a_missing_layer_as_zero() -> None:
    layers = [("a", [1.0, None, 1.0, 1.0]), ("b", [None, None, 1.0, 1.0])]
    svg = stacked_area_chart([0, 1, 2, 3], layers, overlay=("c", [0.5, None, 0.5, 0.5]), **LABELS)
    bands = [p for p in parsed(svg).findall(f"{SVG}path") if p.get("d", "").endswith("Z")]
    assert len(bands) == 4


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.03, 0.05, [0.03, 0.035, 0.04, 0.045, 0.05]),
        (-7.0, 12.0, [-10.0, -5.0, 0.0, 5.0, 10.0, 15.0]),
        (0.0, 4000.0, [0.0, 1000.0, 2000.0, 3000.0, 4000.0]),
    ],
)
def test_nice_ticks(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks, rel=1e-12)


def test_an_overlay_without_values_is_not_in_the_legend() -> None:
    shown = texts(parsed(stacked_area_chart([0, 1], [("a", [1.0, 1.0])], overlay=("line", [None, None]), **LABELS)))
    assert "a" in shown
    assert "line" not in shown


@pytest.mark.parametrize("values", [[1.0, 1.0], [0.97, 1.0], [0.0], [0.0, 0.999], [0.004, 0.004], [0.5]])
def test_an_axis_of_shares_ends_at_none_and_all(values: list[float]) -> None:
    axis = make_axis(values, 0, 100, percent=True, cover=True)
    assert len(axis.ticks) >= 2 and 0 <= axis.low <= min(values) and max(values) <= axis.high <= 1
    assert all(0 <= axis.at(value) <= 100 for value in values)


def test_an_axis_of_differences_may_go_below_none() -> None:
    assert make_axis([-0.1, 0.1], 0, 100, percent=True, cover=True).low == -0.1
