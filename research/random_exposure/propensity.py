"""What weighing impressions by their propensities is worth, where random exposure or the truth can say.

    python -m research.random_exposure.propensity --data DIR --out runs/propensity

DIR holds `coat` and `slate-sim`. The ranker of each recipe is fitted with `ranker.propensity` ignore, ips and snips.
Coat comes with learned propensities for every pair of user and item; of slate-sim, the propensity of an item is taken
to be the share of users to whom it was shown. On both, the figure is the AUC within a user on random exposure, and on
held-out biased exposure beside it. On the simulated marketplace (`research.exposure_bias.measure.SETTINGS`)
propensities are logged and the figure is the rank correlation with true utility. A seed is another cut and other
weights; of the marketplace, another world too. Differences from `ignore` are taken seed by seed, with t-intervals over
seeds. Interrupted, the same command continues: what has a row is not fitted again.
"""

from __future__ import annotations

import argparse
import importlib.resources
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from benchmarks.rows import machine

from adagrpo.config import load_config
from adagrpo.console import StderrConsole
from adagrpo.data.sequences import pad
from adagrpo.evaluation.reward_quality import popularity_bands, rank_correlation
from adagrpo.pipeline import Run
from adagrpo.pipeline.directory import path_of
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.stages.impressions import examined, exposed
from adagrpo.report.page import read_rows
from adagrpo.report.tables import Table, to_markdown
from adagrpo.statistics import seed_interval
from research.command import run
from research.exposure_bias.measure import SETTINGS
from research.rows import add_row

WEIGHTINGS = ("ignore", "ips", "snips")
WORLDS = ("coat", "slate-sim", "marketplace 0.5", "marketplace 1.5")
RECIPES = Path(__file__).parents[2] / "recipes"


def main() -> None:
    """Fit what has no row yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/propensity"))
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("propensity.jsonl"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--worlds", nargs="*", default=list(WORLDS), choices=WORLDS)
    options = parser.parse_args()
    folders = with_propensities(options.data, options.out)
    for seed in options.seeds:
        for world in options.worlds:
            for weighting in WEIGHTINGS:
                done = {(row["world"], row["seed"], row["propensity"]) for row in read_rows(options.results)}
                if (world, seed, weighting) in done:
                    continue
                result = measure(options.out, world, seed, weighting, folders)
                row = {"world": world, "seed": seed, "propensity": weighting, "metrics": result}
                row |= {"commit": machine()["commit"], "threads": os.environ.get("OMP_NUM_THREADS")}
                add_row(options.results, row | {"command": "python -m research.random_exposure.propensity"})
    print(to_markdown(table(read_rows(options.results))))


def with_propensities(data: Path, out: Path) -> dict[str, Path]:
    """Copies of the data sets whose logs have a column `propensity`, by name of the recipe."""
    ratings = pl.read_parquet(data / "coat" / "ratings.parquet")
    learned = pl.read_parquet(data / "coat" / "propensities.parquet")
    logs = {"coat": ratings.join(learned, on=["user_id", "item_id"], how="left", maintain_order="left")}
    shown = pl.read_parquet(data / "slate-sim" / "impressions.parquet")
    share = (pl.len().over("item_id") / pl.col("user_id").n_unique()).alias("propensity")
    logs["slate-sim"] = shown.with_columns(share)
    others = {"coat": "items.parquet", "slate-sim": "random_ratings.parquet"}
    names = {"coat": "ratings.parquet", "slate-sim": "impressions.parquet"}
    for name, content in logs.items():
        folder = out / f"data-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        content.write_parquet(folder / names[name])
        (folder / others[name]).write_bytes((data / name / others[name]).read_bytes())
    return {name: out / f"data-{name}" for name in logs}


def measure(out: Path, world: str, seed: int, weighting: str, folders: dict[str, Path]) -> dict[str, float]:
    """Fit one ranker, and measure it."""
    directory = out / f"{world.replace(' ', '-')}-seed-{seed}-{weighting}"
    weighed = (f"seed={seed}", f"ranker.propensity={weighting}")
    if world in folders:
        columns = "data.columns.propensity=propensity"
        run = Run(directory, load_config(RECIPES / f"{world}.yaml", [*weighed, columns]), folders[world])
        run.prepare()
        run.ranker()
        models = Models(RunData(run))
        return {
            kind: examined(models.data, models.reward(), exposed(models.data, kind))["auc"]
            for kind in ("random", "biased")
        }
    with importlib.resources.as_file(importlib.resources.files("adagrpo") / "recipes" / "demo.yaml") as recipe:
        bias = f"data.marketplace.exposure_bias={world.split()[1]}"
        run = Run(directory, load_config(recipe, [*SETTINGS, bias, *weighed]), Path(), StderrConsole())
    for stage in (Run.prepare, Run.ranker):
        stage(run)
    return correlations(Models(RunData(run)))


@torch.no_grad()
def correlations(models: Models) -> dict[str, float]:
    """Mean rank correlation of scores and true utilities before each user's last purchase, over all items and bands."""
    cases, ranker, truth = (
        models.data.cases("test"),
        models.ranker(path_of(models.run, models.reward_files[0]).parent).eval(),
        models.data.truth(),
    )
    histories = pad(cases.histories, np.arange(len(cases)), models.config.max_history)
    scores = ranker.catalogue_scores(ranker.last_states(histories)).numpy()
    users = cases.users.astype(np.int64)
    utilities = truth.utility(users, np.broadcast_to(np.arange(models.data.num_items), scores.shape))
    bands = popularity_bands(np.bincount(models.data.training.values, minlength=models.data.num_items))
    groups = {"all": np.ones(models.data.num_items, dtype=np.bool_)}
    groups |= {name: bands == name for name in ("head", "middle", "tail")}
    return {
        name: float(np.nanmean(rank_correlation(scores[:, kept], utilities[:, kept]))) for name, kept in groups.items()
    }


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One row a world and figure: `ignore`, and what the weightings change, with 95 % t-intervals over seeds."""
    cells = []
    for world in dict.fromkeys(row["world"] for row in rows):
        values = {(row["propensity"], row["seed"]): row["metrics"] for row in rows if row["world"] == world}
        seeds = sorted({seed for _, seed in values if all((way, seed) in values for way in WEIGHTINGS)})
        if len(seeds) < 2:
            continue
        for name in next(iter(values.values())):
            plain = seed_interval([values["ignore", seed][name] for seed in seeds])
            changes = [
                seed_interval([values[way, seed][name] - values["ignore", seed][name] for seed in seeds])
                for way in WEIGHTINGS[1:]
            ]
            texts = (f"{change.mean:+.4f} ({change.low:+.4f} to {change.high:+.4f})" for change in changes)
            cells.append((world, name, str(len(seeds)), f"{plain.mean:.4f}", *texts))
    header = ("data", "figure", "seeds", "ignore", "ips", "snips")
    return Table(header, tuple(cells), ("left", "left", "right", "right", "right", "right"))


if __name__ == "__main__":
    run(main)
