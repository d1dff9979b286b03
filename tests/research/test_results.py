"""The table of a results file, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adagrpo.errors import UserError
from adagrpo.report import to_markdown
from research.pages.results import results_file_table


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(seed: int, hr: float, **changes: Any) -> dict[str, Any]:
    metrics = {"hr@10": hr, "ndcg@10": hr / 2}
    arguments = {
        "dataset": "beauty",
        "objective": "nll",
        "arm": "nll",
        "seed": seed,
        "checkpoint": "best",
        "split": "test",
    }
    return arguments | {"metrics": metrics} | changes


def test_means_and_intervals_over_seeds(tmp_path: Path) -> None:
    rows = [
        row(0, 0.5),
        row(0, 0.10),  # measured again
        row(1, 0.12),
        row(0, 0.9, split="validation"),
        row(0, 0.2, arm="grpo", checkpoint="final", metrics={"hr@10": 0.2}),
    ]
    # 12.706 times the standard error of two seeds, 0.01
    assert to_markdown(results_file_table(write(tmp_path / "results.jsonl", rows))).splitlines() == [
        "| data set | arm | checkpoint | HR@10 | NDCG@10 | seeds |",
        "|---|---|---|--:|--:|--:|",
        "| beauty | nll | best | 11.00 % ± 12.71 | 0.0550 ± 0.0635 | 2 |",
        "| beauty | grpo | final | 20.00 % | – | 1 |",
    ]


def test_what_is_no_results_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with pytest.raises(UserError, match="no such file"):
        results_file_table(path)
    with pytest.raises(UserError, match="line 2 has no 'seed'"):
        results_file_table(write(path, [row(0, 0.1), {k: v for k, v in row(0, 0.1).items() if k != "seed"}]))
    with pytest.raises(UserError, match="no row of the validation cases"):
        results_file_table(write(path, [row(0, 0.1)]), "validation")
