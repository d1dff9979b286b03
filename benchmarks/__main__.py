"""Measure what the targets in docs/performance.md speak of, side by side on the same inputs.

    python -m benchmarks --data DIR --out results/benchmarks.json [--only NAME ...]

DIR holds the public data sets (`amazon-beauty` and others); a benchmark whose data is not there is left out, and said
so. Rows already in the file are replaced by name and the others kept. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from adagrpo.report.tables import Table, format_number, to_text
from benchmarks import causal_lm, compact, whole
from benchmarks.rows import Row

BENCHMARKS: dict[str, tuple[Callable[[Path, Path], list[Row]], str | None]] = {
    "beam50_vs_generate": (causal_lm.beam50_vs_generate, None),
    "rl_step_vs_trl": (causal_lm.rl_step_vs_trl, None),
    "nll_bf16_share": (compact.nll_bf16_share, "amazon-beauty"),
    "adagrpo_vs_nll_step": (compact.adagrpo_vs_nll_step, "amazon-beauty"),
    "evaluate_beauty_s": (compact.evaluate_beauty, "amazon-beauty"),
    "beauty_end_to_end_min": (whole.beauty_end_to_end, "amazon-beauty"),
    "prepare_20m": (whole.prepare_20m, None),
}


def main() -> None:
    """Run the benchmarks that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks.json"))
    parser.add_argument("--only", nargs="*", choices=sorted(BENCHMARKS), default=sorted(BENCHMARKS))
    options = parser.parse_args()
    kept = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else []
    for name in options.only:
        measure, needs = BENCHMARKS[name]
        if needs is not None and not (options.data / needs).is_dir():
            print(f"{name}: left out, {options.data} holds no {needs}", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as work:
            rows = [row.as_json() for row in measure(options.data, Path(work))]
        for row in rows:
            kept = [other for other in kept if other["name"] != row["name"]] + [row]
            print(f"{row['name']}: {row['value']:.3g} {row['unit']} (target {row['target']})", file=sys.stderr)
        options.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    cells = [
        (row["name"], f"{format_number(row['value'])} {row['unit']}", row["target"], "yes" if row["met"] else "no")
        for row in kept
    ]
    print(to_text(Table(("benchmark", "measured", "target", "met"), tuple(cells), ("left", "right", "right", "left"))))


if __name__ == "__main__":
    main()
