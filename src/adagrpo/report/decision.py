"""Output of `adagrpo decide` for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adagrpo.report.tables import Alignment, Table, to_text

__all__ = ["decision_table", "decision_text"]

START = "sft"


def decision_table(content: Mapping[str, Any]) -> str:
    """All contenders, the simplest first; HR and NDCG on validation, what the choice rests on, and on test."""
    utility = any("true_utility@10" in row["test"] for row in content["contenders"])
    header = ["list", "NDCG@10", f"against {START}", "test HR@10", "test NDCG@10", "coverage", "tail", "invalid"]
    rows = [_cells(row, utility) for row in content["contenders"]]
    best = max(range(len(rows)), key=lambda row: content["contenders"][row]["validation"]["ndcg@10"])
    names = (*header, *(["true utility"] if utility else []), "ms")
    right: Alignment = "right"
    return to_text(Table(names, tuple(rows), ("left", *(right for _ in names[1:])), frozenset({(best, 1)})))


def _cells(row: Mapping[str, Any], utility: bool) -> tuple[str, ...]:
    mean, low, high = row[f"ndcg@10 against {START}"]
    test = row["test"]
    against = "" if row["list"] == START else f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
    invalid = f"{100 * test['hallucination@10']:.2f} %" if "hallucination@10" in test else ""
    return (
        row["list"],
        f"{row['validation']['ndcg@10']:.4f}",
        against,
        f"{test['hr@10']:.4f}",
        f"{test['ndcg@10']:.4f}",
        f"{100 * test['coverage@10']:.1f} %",
        f"{100 * test['tail_share@10']:.1f} %",
        invalid,
        *([f"{test['true_utility@10']:.4f}"] if utility else []),
        f"{row['milliseconds']:.1f}",
    )


def decision_text(content: Mapping[str, Any]) -> str:
    """The decision, its doubts, and the command."""
    chosen = next(row for row in content["contenders"] if row["list"] == content["chosen"])
    lines = [f"Serve {content['chosen']}: {content['why']}. It needs {', '.join(chosen['needs'])}."]
    lines += [f"But {doubt}." for doubt in content["doubts"]]
    return "\n".join([*lines, "", content["serve"]])
