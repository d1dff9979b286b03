"""Measure what the targets in docs/performance.md speak of, side by side on the same inputs.

    python -m benchmarks --data DIR [--out benchmarks/results.json] [--only NAME ...] [--kind qwen3-0.6b]
    python -m benchmarks --check [--out benchmarks/results.json]    says which rows are older than what they measure

DIR holds the public data sets (`amazon-beauty` and others); a benchmark whose data is not there is left out, and said
so. Rows already in the file are replaced by name and the others kept. Nothing else should run on the machine.
`--kind` chooses the language model of the benchmarks that have one; with another than the first, these alone are run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

import research.gates  # noqa: F401 (before what reads recipes)
from adagrpo.report.tables import Table, format_number, to_text
from benchmarks import (
    beside,
    causal_lm,
    compact,
    diagnostics,
    eligible_parts,
    item_head,
    memory,
    prefix_quality,
    scale,
    serving,
    whole,
)
from benchmarks.rows import Row
from benchmarks.stale import staleness

LANGUAGE_MODELS: dict[str, Callable[[Path, Path, causal_lm.Kind], list[Row]]] = {
    "beam50_vs_generate": causal_lm.beam50_vs_generate,
    "rl_step_vs_trl": causal_lm.rl_step_vs_trl,
    "memory_g64_over_g8": memory.memory_g64_over_g8,
}
BENCHMARKS: dict[str, tuple[Callable[[Path, Path], list[Row]], str | None]] = {
    "nll_bf16_share": (compact.nll_bf16_share, "amazon-beauty"),
    "adagrpo_vs_nll_step": (compact.adagrpo_vs_nll_step, "amazon-beauty"),
    "diagnostics_share": (diagnostics.diagnostics_share, "amazon-beauty"),
    "evaluate_beauty_s": (compact.evaluate_beauty, "amazon-beauty"),
    "beside": (beside.beside, "amazon-beauty"),
    "serving": (serving.serving, "amazon-beauty"),
    "beauty_end_to_end_min": (whole.beauty_end_to_end, "amazon-beauty"),
    "decide": (whole.decide, "amazon-beauty"),
    "prepare_20m": (whole.prepare_20m, None),
    "scale": (scale.scale, None),
    "eligible": (eligible_parts.eligible_parts, None),
    "item_head": (item_head.item_head, "amazon-beauty"),
    "prefix_quality": (prefix_quality.prefix_quality, "amazon-beauty"),
}
NAMES = sorted([*LANGUAGE_MODELS, *BENCHMARKS])


def main() -> None:
    """Run the benchmarks that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", type=Path)
    what.add_argument("--check", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.json"))
    parser.add_argument("--only", nargs="*", choices=NAMES)
    parser.add_argument("--kind", choices=sorted(causal_lm.KINDS), default="qwen3-tiny")
    options = parser.parse_args()
    if options.check:
        for line in staleness(json.loads(options.out.read_text(encoding="utf-8"))):
            print(line)
        return
    kind = causal_lm.KINDS[options.kind]
    if kind.device == "cuda" and not torch.cuda.is_available():
        sys.exit(f"--kind {kind.name} needs a GPU, and there is none here")
    names = options.only or (NAMES if options.kind == "qwen3-tiny" else sorted(LANGUAGE_MODELS))
    kept = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else []
    for name in names:
        measure, needs = BENCHMARKS.get(name, (None, None))
        if needs is not None and not (options.data / needs).is_dir():
            print(f"{name}: left out, {options.data} holds no {needs}", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as work:
            folders = (options.data, Path(work))
            result = LANGUAGE_MODELS[name](*folders, kind) if measure is None else measure(*folders)
        rows = [row.as_json() for row in result]
        for row in rows:
            kept = [other for other in kept if other["name"] != row["name"]] + [row]
            print(
                f"{row['name']}: {row['value']:.3g} {row['unit']} (target {row['target'] or 'none'})", file=sys.stderr
            )
        options.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    cells = [
        (
            row["name"],
            f"{format_number(row['value'])} {row['unit']}",
            row["target"],
            {True: "yes", False: "no", None: ""}[row["met"]],
        )
        for row in kept
    ]
    print(to_text(Table(("benchmark", "measured", "target", "met"), tuple(cells), ("left", "right", "right", "left"))))


if __name__ == "__main__":
    main()
