"""Write the rows that readers ask for into docs/performance.md, and all of them into benchmarks/results.md.

    python -m benchmarks.page benchmarks/results.json

Replaces what stands between the markers `<!-- measured -->` and `<!-- /measured -->`. Nothing there is a figure that no
row holds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adagrpo.errors import UserError
from adagrpo.report.tables import MISSING, Alignment, Table, format_number, to_markdown

__all__ = ["beside", "between", "machines", "main", "measured", "with_measured"]

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
BESIDE = Path(__file__).parent / "results.md"
BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
MET = {True: "yes", False: "no", None: MISSING}
SCALE = "scale_"  # rows that show how a cost grows have no target
SHOWN = {  # in docs/performance.md, and what they are
    "rl_step_vs_trl_all": "step of TRL's GRPOTrainer over ours: same causal LM, 16 prompts of 80 tokens, groups of 16",
    "rl_step_vs_trl_eighth": "the same where the gate admits one sample in eight",
    "beam50_vs_generate": "transformers' generate with 50 beams and a prefix function, over our beam search",
    "memory_g64_over_g8": "peak memory of a step, groups of 64 over groups of 8",
    "adagrpo_vs_nll_step": "AdaGRPO step over NLL step, groups of 16",
    "adagrpo_vs_nll_step_hybrid": "the same, hybrid policy",
    "diagnostics_share": "share of a step that the gate's tests take",
    "nll_bf16_share": "FLOP/s of NLL training over those of a large bfloat16 product",
    "prepare_20m_s": "adagrpo prepare of 20 million interactions",
    "prepare_20m_rss_gb": "its peak memory",
    "evaluate_beauty_s": "22,363 validation cases of Beauty, beams of 50, constrained and free",
    "evaluate_beauty_hybrid_s": "the same, hybrid policy",
    "beauty_end_to_end_min": "Amazon Beauty from logs to report, one arm",
    "decide_shop_s": "adagrpo decide of 3,000 users, 800 items and their impressions, from files to the table",
    "decide_beauty_min": "adagrpo decide of Beauty, at drawn times, without the newest 1 % of rows",
    "refresh_beauty_share": "adagrpo refresh by that 1 %, over decide",
    "serve_p50_ms": "HTTP, one request at a time: median",
    "serve_p50_ms_hybrid": "the same, hybrid policy",
    "serve_p50_ms_fused": "the same, its beam fused with the run's other sources",
    "serve_p50_ms_fused_trees": "the same, and with LambdaRank",
    "serve_rps_32": "HTTP, 32 clients: lists a second",
    "serve_cpu_ms": "milliseconds of processor time for each",
    "serve_rps_32_hybrid": "lists a second, hybrid policy",
    "serve_cpu_ms_hybrid": "milliseconds of processor time for each",
    "serve_rps_32_fused": "lists a second, fused",
    "serve_cpu_ms_fused": "milliseconds of processor time for each",
    "serve_rps_32_fused_trees": "lists a second, fused with LambdaRank",
    "serve_cpu_ms_fused_trees": "milliseconds of processor time for each",
    "serve_p99_70": "HTTP at 70 % of that: 99th percentile over median",
    "serve_p99_70_fused": "the same, fused",
    "serve_p99_70_fused_trees": "the same, fused with LambdaRank",
    "eligible_100k_1_compact": "64 lists under a filter that leaves 1 % of 100,000 items, over no filter",
    "head_items_1m_64": "beam search over a million items compared with 10,000, hybrid policy",
    "head_prefixes_1m_64": "the same with policy.item_prefix: 2",
    "train_beside_ratio": "NLL steps beside two busy loops, over alone",
    "train_sleeping_alone_ratio": "NLL steps alone, default over OpenMP's own waiting",
}


def measured(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: the rows of `SHOWN`, with their targets."""
    by_name = {row["name"]: row for row in rows}
    shown = [(name, text, by_name[name]) for name, text in SHOWN.items() if name in by_name]
    cells = [(name, text, _value(row), _spread(row), row["target"], MET[row["met"]]) for name, text, row in shown]
    header = ("row", "what", "measured", "least – most", "target", "met")
    return to_markdown(Table(header, tuple(cells), ("left", "left", "right", "right", "right", "left")))


def beside(rows: Sequence[Mapping[str, Any]]) -> str:
    """The page beside the rows: every figure, what was measured with it, how costs grow, and on which machines."""
    named = [row for row in _sorted(rows) if not row["name"].startswith(SCALE)]
    cells = [
        (row["name"], _value(row), _spread(row), row["target"], MET[row["met"]], row["against"], _details(row))
        for row in named
    ]
    header = ("row", "measured", "least – most", "target", "met", "compared with", "measured too")
    left: Alignment = "left"
    right: Alignment = "right"
    parts = ["# Every figure of the benchmarks"]
    parts.append(to_markdown(Table(header, tuple(cells), (left, right, right, right, left, left, left))))
    scale = [row for row in rows if row["name"].startswith(SCALE)]
    if scale:
        grown = [(row["name"].removeprefix(SCALE), _value(row), _spread(row), row["against"]) for row in scale]
        header_of_growth = ("what grows", "measured", "least – most", "work")
        parts.append(to_markdown(Table(header_of_growth, tuple(grown), (left, right, right, left))))
    return "\n\n".join([*parts, "Measured on: " + "; ".join(machines(rows)) + "."]) + "\n"


def _sorted(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(rows, key=lambda row: str(row["name"]))


def with_measured(page: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The page with the rows between its markers; see `between`."""
    return between(page, rows, lambda: measured(rows))


def between(page: str, rows: Sequence[Mapping[str, Any]], text: Callable[[], str]) -> str:
    """The page with a text about rows between its markers.

    Raises:
        UserError: a marker is missing, or there is no row.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"the page has no {BEGIN} with {END} behind it, between which the rows belong")
    if not rows:
        raise UserError("no row was measured; run python -m benchmarks first")
    return f"{before}{BEGIN}\n\n{text()}\n\n{END}{after}"


def main() -> None:
    """Rewrite the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    rows = json.loads(options.rows.read_text(encoding="utf-8"))
    page = options.page.read_text(encoding="utf-8")
    options.page.write_text(with_measured(page, rows), encoding="utf-8")
    BESIDE.write_text(beside(rows), encoding="utf-8")


def _value(row: Mapping[str, Any]) -> str:
    return f"{format_number(row['value'])} {row['unit']}"


def _spread(row: Mapping[str, Any]) -> str:
    if row["spread"] is None:
        return "one run"
    least, most = row["spread"]
    return "one run" if least == most else f"{format_number(least)} – {format_number(most)}"


def _details(row: Mapping[str, Any]) -> str:
    """What was measured with the figure, on one line."""
    flat: dict[str, Any] = {}
    for name, value in row["detail"].items():
        flat |= {f"{name} {key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
    numbers = {name: format_number(value) if isinstance(value, float) else str(value) for name, value in flat.items()}
    return ", ".join(f"{name.replace('_', ' ')} {number}" for name, number in numbers.items())


def machines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each machine, thread count, version and commit once, with how many rows it gave."""
    result: dict[str, int] = {}
    for row in rows:
        threads = f"{row['threads']} thread{'s' if row['threads'] != 1 else ''}"
        text = f"{row['machine']}, {threads}, torch {row['versions']['torch']}, commit {row['commit']}"
        result[text] = result.get(text, 0) + 1
    return [f"{text} ({count} row{'s' if count != 1 else ''})" for text, count in result.items()]


if __name__ == "__main__":
    main()
