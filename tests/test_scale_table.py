"""The table of costs as logs grow: its log, its exponents, its lines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.scale_log import write_codes, write_items, write_parts
from benchmarks.scale_table import STAGES, exponent, on_page, tables_of


def test_a_log_in_parts_is_the_same_each_time_and_stays_in_few_clusters(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    names = write_parts(tmp_path, rows=20_000, items=2000)
    assert names == write_parts(tmp_path / "again", rows=20_000, items=2000)
    log = pl.read_parquet(tmp_path / names[0])
    assert log.equals(pl.read_parquet(tmp_path / "again" / names[0]))
    assert log["timestamp"].is_sorted() and log["user_id"].n_unique() == 400
    assert abs(len(log) - 20_000) < 1500  # lengths vary by more than half of their mean: 400 of them by 3 %
    assert log["item_id"].min() >= 0 and log["item_id"].max() < 2000  # type: ignore[operator]
    table = pl.read_parquet(tmp_path / write_items(tmp_path, 2000))
    assert table["item_id"].to_list() == list(range(2000))
    counts = np.bincount(log["item_id"].to_numpy(), minlength=2000)
    assert counts[:200].sum() > 3 * counts[-200:].sum()  # the first of each cluster are popular


def test_drawn_codes_are_distinct(tmp_path: Path) -> None:
    table = pl.read_parquet(tmp_path / write_codes(tmp_path, 70_000))
    codes = np.array(table["sid"].to_list())
    assert codes.shape == (70_000, 3) and codes.min() >= 0 and codes.max() < 256
    assert len(np.unique(codes @ [65536, 256, 1])) == 70_000


def rows_of(cells: list[tuple[int, int, float]]) -> list[dict[str, Any]]:
    common = {"stage": "prepare", "status": 0, "machine": "m", "threads": 1, "versions": {"torch": "2"}, "commit": "c"}
    common |= {"load": 3.0}
    return [
        common | {"rows": rows, "items": items, "seconds": 2 * cost, "cpu_seconds": cost, "peak_gb": cost / 4}
        for rows, items, cost in cells
    ]


def lines_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


def test_slopes_are_along_the_line_that_has_the_most_cells() -> None:
    assert exponent([1, 10, 100], [5, 50, 500]) == pytest.approx(1)
    rows = rows_of([(10, 1, 2.0), (100, 1, 20.0), (100, 10, 40.0), (1000, 1, 200.0)])
    rows.append(rows[0] | {"rows": 1000, "stage": "sft", "status": -9})
    seconds, memory = ({line[0]: line for line in lines_of(part)} for part in tables_of(rows).split("Peak"))
    assert set(STAGES) <= set(seconds) and set(STAGES) <= set(memory)
    assert seconds["prepare"][1] == "2 (4)" and memory["prepare"][1] == "0.50"
    for lines in (seconds, memory):
        assert lines["prepare"][-2:] == ["1.00", "0.30"]  # log10 of 2, between 1 and 10 items at 100 rows
        assert "failed (-9)" in lines["sft"] and lines["sft"][-2:] == ["–", "–"]
    square = rows_of([(10, 1, 2.0), (100, 1, 2.0), (10, 10, 2.0), (100, 10, 20.0)])  # of equals the largest line
    assert next(line for line in lines_of(tables_of(square)) if line[0] == "prepare")[-2:] == ["1.00", "1.00"]


def test_drawn_codes_are_named_and_are_no_point_of_tokenize() -> None:
    rows = rows_of([(10, 1, 2.0), (100, 1, 20.0)])
    rows += [rows[0] | {"stage": "tokenize"}, rows[1] | {"stage": "tokenize", "codes": "drawn"}]
    lines = lines_of(tables_of(rows).split("Peak")[0])
    assert next(line for line in lines if line[0] == "tokenize")[1:3] == ["2 (4)", "20 (40), drawn"]
    in_rows = {line[0]: line[-2] for line in lines}
    assert in_rows["prepare"] == "1.00" and in_rows["tokenize"] == "–"


def test_the_page_says_what_was_not_run_and_how_busy_the_machine_was() -> None:
    page = on_page("a\n<!-- measured -->\nold\n<!-- /measured -->\nb", rows_of([(1_000_000, 10_000, 2.0)]))
    assert page.startswith("a\n") and page.endswith("\nb") and "old" not in page
    assert "| 1 M × 10 K | log, tokenize, ranker, sft" in page and "| 100 M × 1000 K | everything |" in page
    assert "| m, 1 thread, torch 2, commit c (1 row) | 3 to 3 |" in page
