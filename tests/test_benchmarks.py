"""Pages of the benchmarks are what their rows give; the benchmarks themselves are commands."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import nodes, page, scale_table, stale

from adagrpo.report.page import read_rows

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
    "serve_cpu_ms",
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
    assert set(TARGETS) <= {row["name"] for row in rows} & set(page.SHOWN)


def test_the_first_line_of_the_page_has_the_figures_of_the_rows() -> None:
    rows = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    value = {row["name"]: round(row["value"]) for row in rows}
    said = (
        f"the compact policy answers {value['serve_rps_32']} requests a second over HTTP, the hybrid one"
        f" {value['serve_rps_32_hybrid']}, a fused list {value['serve_rps_32_fused']}; Amazon Beauty goes from logs to"
        f" report in {value['beauty_end_to_end_min']} minutes; 20 million interactions are read in"
        f" {value['prepare_20m_s']} seconds."
    )
    assert said in (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")


def test_the_check_names_rows_whose_code_has_changed_since_and_what(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *who, *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    files = {name: tmp_path / name for name in ("benchmarks/serving.py", "src/adagrpo/lists/own.py", "README.md")}
    for file in files.values():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x = 1\n")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    rows = [{"name": name, "commit": git("rev-parse", "HEAD")} for name in ("serve_p50_ms", "serve_rps_32")]
    files["README.md"].write_text("y")
    files["src/adagrpo/lists/own.py"].write_text('"""Text."""\nx = 1  # a comment\n')
    assert list(stale.staleness(rows, tmp_path)) == []
    files["src/adagrpo/lists/own.py"].write_text("x = 2\n")
    (tmp_path / "benchmarks" / "serving.py").unlink()
    stale.changed_since.cache_clear()
    (said,) = stale.staleness(rows, tmp_path)
    assert said.startswith("serve_p50_ms, serve_rps_32: of ")
    assert said.endswith("changed since: benchmarks/serving.py, src/adagrpo/lists/own.py")
    (unknown,) = stale.staleness([{"name": "serve_cpu_ms", "commit": "0" * 40}], tmp_path)
    assert "not in this checkout" in unknown


def test_every_row_has_code_that_is_there() -> None:
    rows = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    for name in {*page.SHOWN, *(row["name"] for row in rows)}:
        assert all((ROOT / part).exists() for part in stale.code_of(name)), name


def test_the_table_of_several_machines_is_what_its_rows_give() -> None:
    text = (ROOT / "docs" / "how-to" / "scale.md").read_text(encoding="utf-8")
    assert nodes.on_page(text, list(read_rows(nodes.RESULTS))) == text


def test_the_page_of_growing_logs_is_what_its_rows_give() -> None:
    text = (ROOT / "docs" / "how-to" / "scale.md").read_text(encoding="utf-8")
    path = ROOT / "benchmarks" / "scale_table.jsonl"
    rows = [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines()]
    assert scale_table.on_page(text, rows) == text
    assert scale_table.whole_page(rows) == path.with_suffix(".md").read_text(encoding="utf-8")
