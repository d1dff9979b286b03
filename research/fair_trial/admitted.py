"""What the gates of a finished trial let through: means over the steps of each arm, from the runs of a comparison.

    python -m research.fair_trial.admitted --out runs/fair --comparisons trial-amazon-beauty alike-lastfm-p1

Reads `steps.jsonl` of each arm and seed, trains nothing, and keeps a row for each as `admitted-<comparison>.jsonl`
beside this file. The earlier gate is an arm's own where that is what it has; for the others `admission` is what their
own gate admitted, and `shuffled_admission` what the earlier gate would have with shuffled rewards.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adagrpo.errors import UserError
from adagrpo.report.page import read_rows
from adagrpo.storage.writing import write_file
from research.command import run
from research.fair_trial.tune import HERE

__all__ = ["admitted", "rows_of"]


def admitted(steps: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Means over the groups of a fit, whose steps have equally many.

    Args:
        steps: rows of `steps.jsonl`.

    Returns:
        Shares of all groups: `admission`, `shuffled_admission`, `rejected_easy` and `contains_target`; and of those
        that were admitted, `admitted_contains_target`, None where none was.
    """
    names = ("admission", "shuffled_admission", "rejected_easy", "contains_target")
    means: dict[str, float | None] = {name: sum(row[name] for row in steps) / len(steps) for name in names}
    total = sum(row["admission"] for row in steps)
    held = sum(row["admission"] * row["admitted_contains_target"] for row in steps if row["admission"])
    return means | {"admitted_contains_target": held / total if total else None}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """A row an arm and seed of a comparison's folder; a step that was skipped, as a number was not finite, is no step.

    Raises:
        UserError: it has no arm that a reward trained.
    """
    found = []
    for path in sorted(folder.glob("seed-*/train/*/steps.jsonl")):
        steps, arm = [row for row in read_rows(path) if not row.get("skipped")], path.parent.name
        if steps and "shuffled_admission" in steps[0]:
            seed = int(path.parents[2].name.removeprefix("seed-"))
            found.append({"comparison": folder.name, "seed": seed, "arm": arm, "steps": len(steps)} | admitted(steps))
    if not found:
        raise UserError(f"{folder}: no steps of an arm with a gate; --out is that of the trial")
    return found


def main() -> None:
    """Keep the rows of each comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="of the trial")
    parser.add_argument("--comparisons", nargs="+", required=True, help="folders in it")
    given = parser.parse_args()
    for name in given.comparisons:
        lines = [json.dumps(row) + "\n" for row in rows_of(given.out / name)]
        write_file(HERE / f"admitted-{name}.jsonl", "".join(lines))


if __name__ == "__main__":
    run(main)
