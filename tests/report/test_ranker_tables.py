"""The ranker's tables: every cell from its number, and what is not known is not printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adagrpo.errors import UserError
from adagrpo.report import build_report
from adagrpo.report.ranker_tables import calibration_text, every_gate_table, gate_table, ranking_table, strata_table


def interval(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.02, "users": 5}


@pytest.fixture
def report() -> dict[str, Any]:
    strata = [
        {"by": "all", "stratum": "all", "cases": 1200, "auc": interval(0.9), "ndcg@10": interval(0.1)},
        {"by": "item exposure", "stratum": "0", "cases": 1, "auc": interval(0.5), "ndcg@10": None},
    ]
    outcomes = {"samples": 100, "admitted": 0.25, "easy": 0.05, "undiscriminated": 0.7, "degenerate": 0.0}
    return {
        "strata": strata,
        "calibration": "it is no probability",
        "gate": {"all users": outcomes | {"admitted_if_shuffled": 0.07}},
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


def test_gate(report: dict[str, Any]) -> None:
    table = gate_table(report)
    assert table.header == ("reward", "groups", "share")
    assert [row[1:] for row in table.rows] == [
        ("admitted", "25.0 %"),
        ("rejected", "75.0 %"),
        ("– easy", "5.0 %"),
        ("– undiscriminated", "70.0 %"),
        ("admitted if shuffled", "7.0 %"),
    ]
    report["gate"]["cross-fitted"] = report["gate"]["all users"] | {"pairwise_accuracy": {"admitted": interval(0.7)}}
    table = gate_table(report)
    assert table.header[3] == "pairs of rollouts in the right order" and len(table.rows) == 10
    assert [row[3] for row in table.rows] == ["–"] * 5 + ["70.0 % (69.0 % to 72.0 %)"] + ["–"] * 4


def test_every_gate(report: dict[str, Any]) -> None:
    assert every_gate_table(report) is None
    report["gate"]["all users"]["gates"] = {
        "all": {"admitted": 1.0, "pairwise_accuracy": {"admitted": interval(0.6)}},
        "oracle": {"admitted": 0.125, "pairwise_accuracy": {"admitted": interval(0.9), "rejected": interval(0.5)}},
    }
    table = every_gate_table(report)
    assert table is not None and table.rows == (
        ("all users", "all", "100.0 %", "60.0 % (59.0 % to 62.0 %)", "–"),
        ("all users", "oracle", "12.5 %", "90.0 % (89.0 % to 92.0 %)", "50.0 % (49.0 % to 52.0 %)"),
    )


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
