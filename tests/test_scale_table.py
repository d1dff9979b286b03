"""The table of costs as logs grow: its log, its exponents, its lines."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.scale_log import write_items, write_parts
from benchmarks.scale_table import STAGES, exponent, table_of


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


def test_slopes_are_along_the_line_that_has_the_most_cells() -> None:
    assert exponent([1, 10, 100], [5, 50, 500]) == pytest.approx(1)
    cells = [(10, 1, 2.0), (100, 1, 20.0), (100, 10, 40.0), (1000, 1, 200.0)]
    rows = [
        {"rows": rows, "items": items, "stage": "prepare", "seconds": seconds, "peak_gb": 1.0, "status": 0}
        for rows, items, seconds in cells
    ]
    rows.append({"rows": 1000, "items": 1, "stage": "sft", "seconds": 1.0, "peak_gb": 1.0, "status": -9})
    lines = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in table_of(rows).splitlines()
    }
    assert set(STAGES) <= set(lines)
    assert lines["prepare"][-2:] == ["1.00", "0.30"]  # log10 of 2, between 1 and 10 items at 100 rows
    assert "failed (-9)" in lines["sft"] and lines["sft"][-2:] == ["–", "–"]
