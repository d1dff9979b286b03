"""Which settings of `distill-tuned` hold on small data: each arm against its start and against continued NLL.

    python -m research.small_data.measure --data DIR --out runs/small --seeds 0 1

`DIR` holds a folder a data set, as in the recipes; simulated shops need none. The recipe is the one that `adagrpo init`
writes for the log, with fewer epochs. Validation cases alone are read, all of them after the last step. Rows are
appended as they are measured; what has its row is not measured again, so an interrupted command continues.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

from adagrpo import metrics
from adagrpo.config import ArmConfig, load_config
from adagrpo.console import StderrConsole
from adagrpo.data.logs.preview import preview_logs
from adagrpo.data.simulation.marketplace import Marketplace, simulate
from adagrpo.evaluation.predictions import Predictions, summarise
from adagrpo.pipeline import Run
from adagrpo.pipeline.directory import locked
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.suggest import recipe_text
from adagrpo.report.page import read_rows
from adagrpo.statistics import Interval, paired_difference
from research.command import run
from research.rows import add_row

HERE = Path(__file__).parent
EPOCHS = ("sft.epochs=12", "sft.validations=3", "ranker.fit.epochs=8", "ranker.fit.validations=2")
VALUES = ("ndcg@10", "hr@10")


@dataclass(frozen=True)
class Shop:
    """A simulated market."""

    users: int
    items: int
    exposure_bias: float

    def log(self, data: Path, seed: int) -> pl.DataFrame:
        """Its impressions."""
        world = Marketplace(users=self.users, items=self.items, exposure_bias=self.exposure_bias, seed=seed)
        return simulate(world).impressions


@dataclass(frozen=True)
class Logged:
    """A real data set, or some of its users."""

    folder: str
    users: int | None = None

    def log(self, data: Path, seed: int) -> pl.DataFrame:
        """Its interactions."""
        rows = pl.read_parquet(data / self.folder / "interactions.parquet")
        if self.users is None:
            return rows
        everyone = rows["user_id"].unique().sort().to_numpy()
        drawn = np.random.default_rng(seed).choice(everyone, self.users, replace=False)
        return rows.filter(pl.col("user_id").is_in(drawn.tolist()))


SETS: Mapping[str, tuple[Shop | Logged, tuple[str, ...]]] = {
    "shop-3000x800": (Shop(3000, 800, 0.5), ()),
    "shop-5000x800": (Shop(5000, 800, 1.0), ()),
    "shop-3000x300": (Shop(3000, 300, 0.5), ()),
    "amazon-office": (Logged("amazon-office"), ("data.columns.order=position",)),
    "toys-3000": (Logged("amazon-toys", 3000), ("data.columns.order=position", "data.min_item_interactions=3")),
}


def main() -> None:
    """Measure and append rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path())
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=HERE / "small-data.jsonl")
    parser.add_argument("--arms", type=Path, default=HERE / "arms.yaml")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--starts", action="store_true", help="make the starting policies and rankers alone")
    given = parser.parse_args()
    arms = [ArmConfig.model_validate(arm) for arm in yaml.safe_load(given.arms.read_text(encoding="utf-8"))]
    for seed in given.seeds:
        for name in given.sets:
            run = start(name, seed, given.data, given.out)
            if not given.starts:
                measure(run, name, seed, arms, given.results)


def start(name: str, seed: int, data: Path, out: Path) -> Run:
    """A run with its starting policy and ranker, by the recipe that `adagrpo init` writes."""
    source, options = SETS[name]
    log, recipe = out / f"{name}-{seed}.parquet", out / f"{name}-{seed}.yaml"
    if not recipe.is_file():
        out.mkdir(parents=True, exist_ok=True)
        source.log(data, seed).write_parquet(log)
        columns = dict(option.removeprefix("data.columns.").split("=") for option in options if "columns" in option)
        recipe.write_text(recipe_text(preview_logs([log], None, columns), name), encoding="utf-8")
    config = load_config(recipe, [f"seed={seed}", "threads=1", "train.fit.validations=2", *EPOCHS, *options])
    run = Run(out / f"{name}-{seed}", config, data, StderrConsole())
    with locked(run):
        run.prepare()
        run.tokenize()
        run.sft()
        run.ranker()
    return run


def measure(run: Run, name: str, seed: int, arms: list[ArmConfig], results: Path) -> None:
    """Train and measure the arms that have no row yet."""
    known = {row["arm"] for row in read_rows(results) if (row["set"], row["seed"]) == (name, seed)}
    if known.issuperset(arm.name for arm in arms):
        return
    data = RunData(run)
    models, cases = Models(data), data.cases("validation")

    def answers(weights: Path) -> tuple[Predictions, dict[str, NDArray[np.floating]]]:
        found = models.predict(models.policy(weights), cases, None)
        ranks = metrics.target_rank_in(found.items, cases.targets.astype(np.int64))
        return found, {"ndcg@10": metrics.ndcg(ranks, 10), "hr@10": metrics.hit_rate(ranks, 10)}

    found, before = answers(run.path("sft", "best"))
    facts = {"users": data.training.lengths.size, "items": data.num_items, "cases": len(cases)}
    baseline: dict[str, NDArray[np.floating]] = {}
    shown = summarise(found, cases, tail=data.tail)
    for arm in arms:
        with locked(run):
            run.stage(f"train/{arm.name}")
        folder = run.path("train", arm.name)
        found, after = answers(folder / "final")
        baseline = baseline or after  # the first arm
        if arm.name in known:
            continue
        steps, seen = (list(read_rows(folder / file)) for file in ("steps.jsonl", "validation.jsonl"))
        row: dict[str, Any] = {"set": name, "seed": seed, "arm": arm.name, **facts, "steps": len(steps)}
        row["start"] = {key: shown[key] for key in (*VALUES, "invalid_samples")}
        row["final"] = {key: summarise(found, cases, tail=data.tail)[key] for key in (*VALUES, "invalid_samples")}
        row["least_ndcg@10"] = min(entry["ndcg@10"] for entry in seen) / seen[0]["ndcg@10"]
        for against, values in (("start", before), ("nll", baseline)):
            row[f"vs_{against}"] = {key: _ends(paired_difference(after[key], values[key])) for key in VALUES}
        row["logged"] = _logged(steps)
        add_row(results, row)


def _ends(interval: Interval) -> list[float]:
    return [interval.mean, interval.low, interval.high]


def _logged(steps: list[Mapping[str, Any]]) -> dict[str, float]:
    """What the first and the last step say of the groups, where there are any."""
    first, last = steps[0], steps[-1]
    names = ("invalid_share", "mass", "start_mass", "kl", "grad_norm_nll", "grad_norm_distill")
    ends = (("first", first), ("last", last))
    return {f"{place}_{name}": row[name] for place, row in ends for name in names if name in row}


if __name__ == "__main__":
    run(main)
