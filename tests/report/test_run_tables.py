"""The ranker's tables: every cell from its number, and what is not known is not printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adagrpo.errors import UserError
from adagrpo.report.run_page import build_report
from adagrpo.report.run_tables import calibration_text, ranking_table, strata_table


def interval(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.02, "users": 5}


@pytest.fixture
def report() -> dict[str, Any]:
    strata = [
        {"by": "all", "stratum": "all", "cases": 1200, "auc": interval(0.9), "ndcg@10": interval(0.1)},
        {"by": "item exposure", "stratum": "0", "cases": 1, "auc": interval(0.5), "ndcg@10": None},
    ]
    return {
        "strata": strata,
        "calibration": "it is no probability",
    }


def test_strata(report: dict[str, Any]) -> None:
    table = strata_table(report)
    assert table.header == ("by", "stratum", "cases", "AUC", "NDCG@10")
    assert table.rows == (
        ("all", "all", "1,200", "0.900 (0.890 to 0.920)", "0.100 (0.090 to 0.120)"),
        ("item exposure", "0", "1", "0.500 (0.490 to 0.520)", "–"),
    )
    for row in report["strata"]:
        row |= {"ece": 0.0314, "true_correlation": interval(-0.2)}
    table = strata_table(report)
    assert table.header[5:] == ("correlation with true utility", "ECE")
    assert table.rows[1][5:] == ("-0.200 (-0.210 to -0.180)", "0.031")
    assert len(table.alignment) == len(table.header)


def test_the_rankers_own_row_is_of_the_same_cases_as_the_others() -> None:
    """Its fit validated on fewer users, all items among them."""
    metrics = {
        "ranker": {"validation": {"hr@10": 0.09}},
        "baselines": {"ranker": {"validation": {"hr@10": 0.33}}, "popularity": {"validation": {"hr@10": 0.05}}},
        "stages": {"sft": {"validation": {"hr@10": 0.1}}},
    }
    table = ranking_table(metrics, "validation")
    assert table is not None
    assert [row[1] for row in table.rows if row[0].startswith("ranker alone")] == ["33.00 %"]
    del metrics["baselines"]["ranker"]
    table = ranking_table(metrics, "validation")
    assert table is not None
    assert [row[1] for row in table.rows if row[0].startswith("ranker alone")] == ["9.00 %"]


def test_calibration(report: dict[str, Any]) -> None:
    assert calibration_text(report) == "No calibration error: it is no probability."
    report["calibration"] = [{"cases": 1500, "confidence": 0.053, "hit_rate": 0.5}]
    assert calibration_text(report).endswith("0.05 against 0.50 (1,500 cases).")


def test_the_page_shows_it_where_it_is_and_says_where_it_is_not(report: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{}", encoding="utf-8")
    assert "As a reward, by stratum" not in build_report(tmp_path)
    folder = tmp_path / "ranker" / "report"
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    page = build_report(tmp_path)
    assert "0.900 (0.890 to 0.920)" in page and "No calibration error: it is no probability." in page
    (folder / "report.json").write_text('{"strata": []}', encoding="utf-8")
    with pytest.raises(UserError, match=r"report\.json: damaged"):
        build_report(tmp_path)
