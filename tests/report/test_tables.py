import math
from typing import Any

import pytest

from adagrpo.errors import UserError
from adagrpo.report.tables import (
    Table,
    checkpoints,
    format_metric,
    format_number,
    format_relative,
    metric_table,
    results_table,
    to_markdown,
    to_text,
)


def values(hr: float, hallucination: float, reward: float, **more: float) -> dict[str, float]:
    return {"hr@10": hr, "ndcg@10": 0.6 * hr, "hallucination@10": hallucination, "mean_reward@10": reward, **more}


def run_metrics() -> dict[str, Any]:
    arm = {
        "admission": 0.118,
        "gate": "adagrpo",
        "best": {"step": 120, "test": values(0.1218, 0.0022, 2.0), "validation": values(0.13, 0.002, 2.0)},
        "final": {"step": 400, "test": values(0.1163, 0.0027, 2.5)},
    }
    return {"stages": {"adagrpo": arm, "sft": {"test": values(0.1101, 0.0010, 1.5)}}}


def test_numbers_by_hand() -> None:
    table = results_table(run_metrics())
    assert table.header == (
        "arm",
        "checkpoint",
        "HR@10",
        "vs sft",
        "NDCG@10",
        "hallucination@10",
        "mean reward@10",
        "admission",
    )
    # 0.1218 / 0.1101 = 1.10627, 0.1163 / 0.1101 = 1.05631
    assert table.rows == (
        ("sft", "start", "11.01 %", "–", "0.0661", "0.10 %", "1.500", "–"),
        ("adagrpo", "best, step 120", "12.18 %", "+10.6 %", "0.0731", "0.22 %", "2.000", "11.8 %"),
        ("adagrpo", "final, step 400", "11.63 %", "+5.6 %", "0.0698", "0.27 %", "2.500", "11.8 %"),
    )
    assert table.alignment == ("left",) * 2 + ("right",) * 6


def test_best_is_lowest_for_hallucination_and_highest_elsewhere() -> None:
    # HR and NDCG: row 1; hallucination: sft; reward: final; neither the change nor the admission is ranked
    assert results_table(run_metrics()).best == {(1, 2), (1, 4), (0, 5), (2, 6)}


def test_rows_that_print_alike_are_marked_alike_and_equal_columns_not_at_all() -> None:
    table = metric_table(
        ("arm",), [("a",), ("b",), ("c",)], [[0.10001, 0.2], [0.1, 0.2], [0.09, 0.2]], ["hr@10", "hr@50"]
    )
    assert table.best == {(0, 1), (1, 1)}


def test_true_utility_has_a_column_only_where_it_is_known() -> None:
    metrics = run_metrics()
    assert "true utility@10" not in results_table(metrics).header
    metrics["stages"]["sft"]["test"]["true_utility@10"] = 0.123456
    table = results_table(metrics)
    place = table.header.index("true utility@10")
    assert [row[place] for row in table.rows] == ["0.1235", "–", "–"]


def test_columns_and_split_can_be_chosen() -> None:
    table = results_table(run_metrics(), "validation", ["ndcg@10", "hr@10"])
    assert table.header == ("arm", "checkpoint", "NDCG@10", "HR@10", "vs sft")
    assert table.rows[1] == ("adagrpo", "best, step 120", "0.0780", "13.00 %", "–")  # sft has no validation here
    assert table.rows[2] == ("adagrpo", "final, step 400", "–", "–", "–")


def test_nothing_measured() -> None:
    assert results_table({}).rows == ()
    assert to_text(results_table({})) == "arm  checkpoint\n---  ----------"


@pytest.mark.parametrize("bad", [math.nan, math.inf, None, "0.1", True])
def test_what_is_no_number_is_missing(bad: Any) -> None:
    metrics = run_metrics()
    metrics["stages"]["sft"]["test"]["hr@10"] = bad
    table = results_table(metrics)
    assert table.rows[0][2] == "–"
    assert [row[3] for row in table.rows] == ["–", "–", "–"]


@pytest.mark.parametrize(
    ("metrics", "path"),
    [
        ({"stages": [1]}, "stages"),
        ({"stages": {"nll": 3}}, "nll"),
        ({"stages": {"nll": {"best": 3}}}, "nll.best"),
        ({"stages": {"nll": {"best": {"test": [1]}}}}, "nll.best.test"),
    ],
)
def test_wrong_layout_is_named(metrics: dict[str, Any], path: str) -> None:
    with pytest.raises(UserError, match=f"'{path}' is (list|int), a mapping would be right"):
        checkpoints(metrics)


def test_text_is_aligned() -> None:
    lines = to_text(results_table(run_metrics(), columns=["hr@10"])).split("\n")
    assert lines == [
        "arm      checkpoint         HR@10    vs sft",
        "-------  ---------------  --------  -------",
        "sft      start            11.01 %         –",
        "adagrpo  best, step 120   12.18 %*  +10.6 %",
        "adagrpo  final, step 400  11.63 %    +5.6 %",
    ]


def test_hostile_names_stay_one_cell() -> None:
    table = Table(("arm",), (("a|b\n<script>*\x1b[31m",),), ("left",))
    assert to_markdown(table).split("\n")[2] == r"| a\|b \<script\>\* \[31m |"
    assert to_text(table).split("\n")[2] == "a|b <script>* [31m"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.0, "1.000"),
        (0.00012345, "0.0001234"),
        (-12.3456, "-12.35"),
        (1234.0, "1234"),
        (98765.4, "98,765"),
    ],
)
def test_four_significant_figures(value: float, text: str) -> None:
    assert format_number(value) == text


def test_formats() -> None:
    assert format_metric("hallucination@10", 0.00217) == "0.22 %"
    assert format_metric("coverage@10", 1.0) == "100.00 %"
    assert format_metric("admission", 0.1234) == "12.3 %"
    assert format_metric("true_utility@10", None) == "–"
    assert format_relative(0.05, 0.1) == "-50.0 %"
    assert format_relative(0.05, None) == "–"
