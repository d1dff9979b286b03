"""Does the network of a fused list learn taste, or what the shop shows? In simulated shops, whose truth is known.

    python -m research.decisions.network --out runs/decisions --seeds 20 21 22
    python -m research.decisions.network --table

The shops and the reward `trees` of `shops.yaml`, each seed a world of its own. A row of `network.jsonl` is a shop:
HR@10 of the logs and true utility@10 on test of fused lists by weights and network, and by the weights alone.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from adagrpo.lists.names import FUSE, FUSE_WITHOUT_REWARD, START
from adagrpo.pipeline import Run
from adagrpo.report.page import read_rows
from research.command import run
from research.decisions.exposure_weights import forget
from research.decisions.shops import HERE, UTILITY, carry_out, shop
from research.rows import add_row

RESULTS = HERE / "network.jsonl"
LISTS = (FUSE_WITHOUT_REWARD, FUSE)


def main() -> None:
    """Measure what is missing, or print the table of what is there."""
    carry_out(__doc__, _measure, lambda: table(read_rows(RESULTS)))


def _measure(plan: Mapping[str, Any], bias: float, seed: int, out: Path) -> None:
    key = {"exposure_bias": bias, "seed": seed}
    if any(all(row[name] == value for name, value in key.items()) for row in read_rows(RESULTS)):
        return
    folder = out / f"network-{bias:g}-{seed}"
    made = shop(plan, bias, "trees", folder, f"seed={seed}")
    forget(made)  # what was stopped may hold weights alone
    lists = {"weights and network": _lists(made)}
    fitted = json.loads(made.path(FUSE, START, "weights.json").read_text(encoding="utf-8"))
    forget(made)
    with weights_alone():
        lists["weights"] = _lists(made)
    add_row(RESULTS, key | {"epochs": {name: fitted[name]["epochs"] for name in LISTS}} | lists)
    shutil.rmtree(folder)


@contextmanager
def weights_alone() -> Iterator[None]:
    """No network is added to the weights that are fitted."""
    with mock.patch("adagrpo.lists.fit_fusion.most_epochs", lambda cases: 0):
        yield


def _lists(made: Run) -> dict[str, dict[str, float]]:
    rows = {row["list"]: row["test"] for row in made.decide()["contenders"]}
    return {name: {metric: rows[name][metric] for metric in ("hr@10", UTILITY)} for name in (START, *LISTS)}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """HR@10 of the logs and true utility@10, means over shops; of what the network adds the lowest and highest too."""
    lines = ["| exposure bias | shops | list | weights | weights and network | utility gained, thousandths |"]
    lines.append("|--:|--:|---|--:|--:|--:|")
    for bias in sorted({row["exposure_bias"] for row in rows}):
        own = [row for row in rows if row["exposure_bias"] == bias]
        for name in LISTS:
            values = {
                kind: np.array([[row[kind][name][metric] for metric in ("hr@10", UTILITY)] for row in own])
                for kind in ("weights", "weights and network")
            }
            gained = values["weights and network"][:, 1] - values["weights"][:, 1]
            mean, low, high = (1000 * float(one) for one in (gained.mean(), gained.min(), gained.max()))
            cells = (" / ".join(f"{one:.4f}" for one in found.mean(axis=0)) for found in values.values())
            lines.append(
                f"| {bias:g} | {len(own)} | {name} | {' | '.join(cells)} | {mean:+.1f} ({low:+.1f}, {high:+.1f}) |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
