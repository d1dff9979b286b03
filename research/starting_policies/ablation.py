"""What each setting of a starting policy is worth, on validation cases, with paired intervals over users.

    python -m research.starting_policies.ablation recipes/amazon-beauty.yaml --data DIR/amazon-beauty \
        --out runs/ablation-beauty --results research/starting_policies/ablation-beauty.jsonl

Every variant is the recipe with some settings changed, in a run directory of its own; `weights` takes the trained
weights of another variant instead, where only decoding differs. A variant is compared with the first one, the
reference, user by user: the same validation target, found or not by either. One seed, so the interval knows of other
users and not of other trainings. Test cases are not read. Interrupted, the same command continues.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

from adagrpo import metrics
from adagrpo.config import load_config
from adagrpo.console import StderrConsole
from adagrpo.evaluation.predictions import retrieval
from adagrpo.pipeline import Run
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.report.tables import to_markdown
from adagrpo.statistics import paired_difference
from research.command import run
from research.pages.results import ablation_table


class Variant(NamedTuple):
    """A changed recipe."""

    name: str
    settings: tuple[str, ...]  # `key=value`, as `--set` takes them
    weights: str | None = None  # the variant that was trained


def main() -> None:
    """Run the variants and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variants", type=Path, default=Path(__file__).with_name("ablations.yaml"))
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="names of variants; the reference is always among them")
    options = parser.parse_args()
    rows = yaml.safe_load(options.variants.read_text(encoding="utf-8"))
    variants = [Variant(row["name"], tuple(row.get("set", ())), row.get("weights")) for row in rows]
    chosen = {variants[0].name, *(options.only or [variant.name for variant in variants])}
    results: list[dict[str, Any]] = []
    reference: dict[str, NDArray[np.int64]] | None = None
    for variant in variants:
        if variant.name in chosen:
            row, ranks = measure(options.recipe, options.data, options.out, variant)
            reference = ranks if reference is None else reference
            row |= {"worth": worth(reference, ranks)}
            results.append(row)
            options.results.write_text("".join(json.dumps(result) + "\n" for result in results), encoding="utf-8")
    print(to_markdown(ablation_table(results)))


def measure(
    recipe: Path, data: Path, out: Path, variant: Variant
) -> tuple[dict[str, Any], dict[str, NDArray[np.int64]]]:
    """Train a variant unless it has been, and rank every validation target.

    Returns:
        The row of results, and the rank of each user's target from 1 (0: not in the list), with and without masking.
    """
    run = Run(out / variant.name.replace(" ", "-"), load_config(recipe, variant.settings), data, StderrConsole())
    run.prepare()
    run.tokenize()
    trained = run if variant.weights is None else Run(out / variant.weights.replace(" ", "-"), run.config, data)
    if variant.weights is None:
        run.sft()
    models = Models(RunData(run))
    cases = models.data.cases("validation")
    weights = trained.path("sft", "best")

    def build(work: Path) -> None:
        result = models.predict(models.policy(weights), cases, None)
        lists = {"masked": result.items, "unmasked": result.items if result.unmasked is None else result.unmasked}
        targets = cases.targets.astype(np.int64)
        ranks = {name: metrics.target_rank_in(items, targets) for name, items in lists.items()}
        pl.DataFrame({"user": cases.users, **ranks}).write_parquet(work / "ranks.parquet")
        values = {name: retrieval(items, cases) for name, items in lists.items()}
        (work / "metrics.json").write_text(json.dumps(values), encoding="utf-8")

    settings = run.config.model_dump(mode="json", by_alias=True)
    inputs = [*models.data.training_files, *models.data.catalog_files, weights / "model.safetensors"]
    folder = run.stage("validation", config=[settings["policy"], settings["evaluation"]], inputs=inputs, build=build)
    ranks = pl.read_parquet(folder / "ranks.parquet")
    row = {
        "recipe": recipe.name,
        "variant": variant.name,
        "set": variant.settings,
        "weights": variant.weights,
        "seed": run.config.seed,
        "split": "validation",
        "users": len(ranks),
        "metrics": json.loads((folder / "metrics.json").read_text(encoding="utf-8")),
        "sft_seconds": _seconds(run.path("events.jsonl")) if variant.weights is None else None,
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }
    return row, {name: ranks[name].to_numpy() for name in ("masked", "unmasked")}


def worth(reference: dict[str, NDArray[np.int64]], ranks: dict[str, NDArray[np.int64]]) -> dict[str, dict[str, Any]]:
    """Variant minus reference of HR@10 and NDCG@10, with paired 95 % intervals over users."""
    result: dict[str, dict[str, Any]] = {}
    for kind in ("masked", "unmasked"):
        for name, metric in (("hr@10", metrics.hit_rate), ("ndcg@10", metrics.ndcg)):
            difference = paired_difference(metric(ranks[kind], 10), metric(reference[kind], 10))
            result.setdefault(kind, {})[name] = difference._asdict()
    return result


def _seconds(events: Path) -> float | None:
    """How long the latest making of the stage sft took."""
    rows = [json.loads(line) for line in events.read_text(encoding="utf-8").splitlines()]
    result = [float(row["seconds"]) for row in rows if row["stage"] == "sft" and row["event"] == "end"]
    return result[-1] if result else None


if __name__ == "__main__":
    run(main)
