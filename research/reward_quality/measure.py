"""Which objective pays at which quality of the reward: the same arms with the reward degraded step by step.

    python -m research.reward_quality.measure recipes/amazon18-scientific.yaml --data DIR/amazon18-scientific \
        --out runs/quality-scientific --variants research/reward_quality/rewards_logged.yaml \
        --results research/reward_quality/quality-scientific.jsonl

Every variant is the recipe with another reward, in a comparison of its own (`adagrpo compare`, one seed) that starts
from the same starting policy. A row holds what `adagrpo diagnose` says of the reward, by the starting policy and the
validation cases alone, and what the arms did on test cases against the recipe's baseline. One seed: the intervals know
of other users and not of other trainings. Interrupted, the same command continues.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from adagrpo.config import load_config
from adagrpo.console import StderrConsole
from adagrpo.pipeline import Run
from adagrpo.pipeline.compare import Comparison
from adagrpo.pipeline.directory import locked
from adagrpo.report.tables import to_markdown
from adagrpo.storage.marks import claim
from research.command import run
from research.pages.quality import quality_table

SHARED = ("simulate", "prepare", "tokenize", "sft", "ranker", "train/nll")  # what is not of the reward is made once


def main() -> None:
    """Run the variants and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variants", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--objectives", default="nll,mixture,adagrpo-rollout_miss,distill-ends,rerank")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    variants = yaml.safe_load(options.variants.read_text(encoding="utf-8"))
    folders = [options.out / variant["name"].replace(" ", "-") for variant in variants]
    rows: list[dict[str, Any]] = []
    for variant, folder in zip(variants, folders, strict=True):
        take_over(*(values / f"seed-{options.seed}" for values in (folders[0], folder)))
        rows.append(measure(options.recipe, options.data, folder, variant, options.objectives.split(","), options.seed))
        options.results.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(to_markdown(quality_table(rows)))


def take_over(source: Path, target: Path) -> None:
    """Copy the stages that the reward has no part in; what does not fit the variant after all is made again there."""
    claim(target.parent, "comparison")
    claim(target, "run")
    for stage in SHARED:
        if (source / stage).is_dir() and not (target / stage).exists():
            shutil.copytree(source / stage, target / stage)


def measure(
    recipe: Path, data: Path, folder: Path, variant: Mapping[str, Any], objectives: list[str], seed: int
) -> dict[str, Any]:
    """Train and compare, and diagnose the reward by what stood before: the starting policy on validation cases.

    Returns:
        The row of results.
    """
    config = load_config(recipe, variant["set"]).model_copy(update={"seed": seed})
    comparison = Comparison(folder, config, data, objectives=objectives, seeds=[seed], console=StderrConsole())
    run = Run(folder / f"seed-{seed}", comparison.config.model_copy(update={"seed": seed}), data, StderrConsole())
    content = comparison.carry_out()
    with locked(run):
        diagnosis = run.diagnose().content
    kept = ("arm", "checkpoint", "verdict", "test", "against")
    return {
        "dataset": config.name,
        "variant": variant["name"],
        "set": variant["set"],
        "seed": seed,
        "split": "test",
        "users": content["users"],
        "baseline": content["plan"]["baseline"],
        "diagnosis": {
            "decision": diagnosis["verdict"]["decision"],
            "orders": diagnosis["orders"],
            "minus_policy": diagnosis["all"]["minus_policy"],
        },
        "arms": [{key: row[key] for key in kept} for row in content["rows"]],
    }


if __name__ == "__main__":
    run(main)
