"""What a ranker fitted to biased impressions is worth as a reward, against how biased the exposure was.

    python -m research.exposure_bias.measure --out runs/exposure-bias

The demo's recipe in a smaller world and with fewer steps (`SETTINGS`), for each exposure bias and seed. The arms are
scored by the ranker of all users; the gates are also read with a cross-fitted one. A seed is another world, another
log and other weights. One row an exposure bias and seed is appended to the results once its run is whole, and a bias
and seed that have a row are not run again: interrupted, the same command continues.
"""

from __future__ import annotations

import argparse
import importlib.resources
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows import machine

from adagrpo.config import load_config
from adagrpo.console import StderrConsole
from adagrpo.pipeline import Run
from adagrpo.pipeline.description import config_hash
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.report.page import read_rows
from research.command import run
from research.exposure_bias.gates import gates_of
from research.rows import add_row

BIASES = (0.0, 0.5, 1.0, 1.5)
SETTINGS = (
    "data.marketplace={users: 800, items: 500}",
    "tokenizer.codes=16",
    "policy={width: 64, heads: 4, decoder_hidden: 128, dropout: 0.2}",
    "sft={epochs: 30, batch_size: 64, learning_rate: 2.0e-3, validations: 2, validation_users: 400}",
    "ranker.fit={epochs: 25, batch_size: 64, learning_rate: 3.0e-3, validations: 3, validation_users: 400}",
    "train.fit={epochs: 3, batch_size: 64, learning_rate: 5.0e-4, validations: 1, validation_users: 400}",
    "train.arms=[{objective: nll}, {objective: mixture}, {objective: grpo},"
    " {objective: adagrpo, gate: rollout_miss},"
    " {objective: adagrpo, gate: oracle}]",
    "objective.control_of=rollout_miss",
)
FOLDS = 2
MEASURED = ("true_utility@10", "mean_reward@10", "hr@10", "ndcg@10", "hallucination@10")


def main() -> None:
    """Run what has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/exposure-bias"))
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("exposure-bias.jsonl"))
    parser.add_argument("--biases", type=float, nargs="*", default=list(BIASES))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    options = parser.parse_args()
    carry_out(options.out, options.results, options.biases, options.seeds, SETTINGS)


def carry_out(out: Path, results: Path, biases: Sequence[float], seeds: Sequence[int], settings: Sequence[str]) -> None:
    """Append a row for each bias and seed that has none; seeds go round first, so that early rows span all biases."""
    for seed in seeds:
        for bias in biases:
            done = {(row["exposure_bias"], row["seed"]) for row in read_rows(results)}
            if (bias, seed) in done:
                continue
            add_row(results, measure(out / f"bias-{bias:g}-seed-{seed}", bias, seed, settings))


def measure(directory: Path, bias: float, seed: int, settings: Sequence[str]) -> dict[str, Any]:
    """One world: its ranker, its gates with and without cross-fitting, and every arm."""
    started = time.monotonic()
    world = (*settings, f"data.marketplace.exposure_bias={bias:g}", f"seed={seed}")
    with importlib.resources.as_file(importlib.resources.files("adagrpo") / "recipes" / "demo.yaml") as recipe:
        config, folded = (load_config(recipe, [*world, f"ranker.folds={folds}"]) for folds in (0, FOLDS))
    run = Run(directory, config, Path(), StderrConsole())
    for stage in (Run.prepare, Run.tokenize, Run.sft, Run.ranker, Run.train):
        stage(run)
    arms = [arm.name for arm in config.train.arms]
    run.evaluate()
    metrics = run.results
    run.stage("ranker/report")
    report = json.loads(run.path("ranker", "report", "report.json").read_text(encoding="utf-8"))
    run.config = folded  # from here on the gates alone, with both rewards
    run.ranker()
    models = Models(RunData(run))
    rewards = {"all users": models.reward(), "cross-fitted": models.group_reward()}
    sft, ranker = metrics["stages"]["sft"], metrics["ranker"]
    return {
        "exposure_bias": bias,
        "seed": seed,
        "settings": list(settings),
        "folds": FOLDS,
        "ranker": {"hr@10": ranker["validation"]["hr@10"]},
        "strata": [row for row in report["strata"] if row["by"] in ("all", "item popularity", "item exposure")],
        "gate": {name: gates_of(models, reward) for name, reward in rewards.items()},
        "arms": {"sft": _arm({"final": sft})} | {name: _arm(metrics["stages"][name]) for name in arms},
        "config_hash": config_hash(run.config),
        "commit": machine()["commit"],
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "seconds": round(time.monotonic() - started, 1),
        "command": "python -m research.exposure_bias.measure",
    }


def _arm(entry: dict[str, Any]) -> dict[str, Any]:
    """Test metrics of the final checkpoint."""
    result: dict[str, Any] = {name: entry["final"]["test"][name] for name in MEASURED}
    return result | {"admission": entry.get("admission"), "step": entry["final"].get("step")}


if __name__ == "__main__":
    run(main)
