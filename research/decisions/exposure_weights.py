"""How much should a choice count of an item that was shown often? In simulated shops, whose truth is known.

    python -m research.decisions.exposure_weights --out runs/decisions --seeds 10 11 12
    python -m research.decisions.exposure_weights --table

The shops and the reward `trees` of `shops.yaml`, each seed a world of its own. A row of `exposure_weights.jsonl` is
a shop whose fused lists, re-ranking and choice count each validation case as (1 / times shown) ** power, see
`adagrpo.rewards.reranking`; 0.5 is what ships. What has its row is not measured again.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adagrpo.config.evaluation import DecideConfig
from adagrpo.pipeline import Run
from adagrpo.report.page import read_rows
from research.command import run
from research.decisions.shops import HERE, UTILITY, carry_out, shop
from research.rows import add_row

RESULTS = HERE / "exposure_weights.jsonl"
POWERS = (0.0, 0.5, 1.0)
AGAIN = ("reranking", "fuse", "evaluate", "decision.json")  # what reads the weights of cases
LISTS = ("sft", "rerank", "fuse-without-reward", "fuse")


def main() -> None:
    """Measure what is missing, or print the table of what is there."""
    carry_out(__doc__, _measure, lambda: table(read_rows(RESULTS)))


def _measure(plan: Mapping[str, Any], bias: float, seed: int, out: Path) -> None:
    folder, rows = out / f"weights-{bias:g}-{seed}", read_rows(RESULTS)
    for power in POWERS:
        key = {"exposure_bias": bias, "seed": seed, "power": power}
        if any(all(row[name] == value for name, value in key.items()) for row in rows):
            continue
        content = decided(shop(plan, bias, "trees", folder, f"seed={seed}"), power)
        contenders = {row["list"]: row["test"] for row in content["contenders"]}
        add_row(RESULTS, key | {"chosen": content["chosen"], "contenders": contenders})
    shutil.rmtree(folder, ignore_errors=True)


def decided(made: Run, power: float) -> dict[str, Any]:
    """Decide anew, each validation case counted (1 / times shown) ** power.

    Args:
        made: what it holds of another power is made again.
        power: 0 counts all cases alike.
    """
    made.config = made.config.model_copy(update={"decide": DecideConfig(exposure_power=power)})
    return made.decide()


def forget(made: Run) -> None:
    """Remove what reads the weights of cases."""
    for path in (made.path(name) for name in AGAIN):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Test HR@10 of the logs and true utility@10 of each list, means over shops."""
    lines = ["| exposure bias | power | shops | " + " | ".join((*LISTS, "chosen")) + " |"]
    lines.append("|--:|--:|--:|" + "--:|" * (len(LISTS) + 1))
    for bias, power in sorted({(row["exposure_bias"], row["power"]) for row in rows}):
        own = [row for row in rows if (row["exposure_bias"], row["power"]) == (bias, power)]
        cells = [[row["contenders"][name] for row in own] for name in LISTS]
        cells.append([row["contenders"][row["chosen"]] for row in own])
        said = (" / ".join(f"{np.mean([m[key] for m in cell]):.4f}" for key in ("hr@10", UTILITY)) for cell in cells)
        lines.append(f"| {bias:g} | {power:g} | {len(own)} | " + " | ".join(said) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
