"""Pages of the benchmarks are what their rows give; the benchmarks themselves are commands."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import page, scale_table

ROOT = Path(__file__).parents[1]
MODULES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))

TARGETS = (
    "rl_step_vs_trl_all",
    "rl_step_vs_trl_eighth",
    "beam50_vs_generate",
    "adagrpo_vs_nll_step",
    "nll_bf16_share",
    "evaluate_beauty_s",
    "diagnostics_share",
    "beauty_end_to_end_min",
    "serve_p50_ms",
    "serve_rps_32",
    "prepare_20m_s",
    "prepare_20m_rss_gb",
    "memory_g64_over_g8",
)


@pytest.mark.parametrize("name", MODULES)
def test_every_benchmark_can_be_imported(name: str) -> None:
    importlib.import_module(f"benchmarks.{name}")


def test_the_page_of_the_project_is_what_its_rows_give() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    rows = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    assert page.with_measured(text, rows) == text
    assert page.beside(rows) == page.BESIDE.read_text(encoding="utf-8")
    assert {row["name"] for row in rows} >= set(page.SHOWN) and set(TARGETS) <= set(page.SHOWN)


def test_the_page_of_growing_logs_is_what_its_rows_give() -> None:
    text = (ROOT / "docs" / "how-to" / "scale.md").read_text(encoding="utf-8")
    path = ROOT / "benchmarks" / "scale_table.jsonl"
    rows = [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines()]
    assert scale_table.on_page(text, rows) == text
    assert scale_table.whole_page(rows) == path.with_suffix(".md").read_text(encoding="utf-8")
