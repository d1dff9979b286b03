"""The paper's premise on a real feed: what a policy makes of a ranker that learnt from what was shown.

    python -m research.exposed_feed.measure --data DIR/kuairand-pure-log --out runs/exposed-feed

The policy learns long views in their order, the ranker what was shown and watched or not. Every order is held against
two judges: what the feed showed in the two weeks after, and what a uniform random policy showed. There are counts, the
ranker, a ranker whose impressions are weighed by one over their share of exposures, the starting policy, the same
re-ranked at several weights, and the last checkpoint of each arm of `recipe.yaml`. Some arms are trained again with the
ranker that is weighed. Differences are paired by user, from the starting policy and from continued NLL. One row an
order is added to `exposed-feed.jsonl`; what has one is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from benchmarks.rows import machine

from adagrpo.config import ArmConfig, Config, load_config
from adagrpo.console import StderrConsole
from adagrpo.pipeline import Run
from adagrpo.report.page import read_rows
from research.command import run
from research.exposed_feed.judges import JUDGE, SCORES, Judge, Judges
from research.exposed_feed.orders import differences, judge_order, means
from research.rows import add_row

HERE = Path(__file__).parent
WEIGHTS = (0.5, 1.0, 2.0, 4.0)  # of the reward in re-ranking
WEIGHED = "weighed"  # what is of the ranker with weighed impressions
AGAIN = ("samples-1", "samples-4", "gate-1")  # arms of the recipe that are trained with that one too
PAIRS = (
    ("gate-1", "random-1"),
    ("gate-4", "random-4"),
    ("gate-1", "samples-1"),
    ("gate-4", "samples-4"),
    *((f"{arm}-{WEIGHED}", arm) for arm in AGAIN),
)
LOG = "train_exposures.parquet"
JUDGES = {  # what the feed showed later, and what a random policy showed
    "feed": Judge("impressions.parquet", ("long_view", "clicked"), users=8000),
    "random": Judge("random_exposures.parquet", ("clicked",), users=6000),
}


def main() -> None:
    """Measure what has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/exposed-feed"))
    parser.add_argument("--results", type=Path, default=HERE / "exposed-feed.jsonl")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--arms", nargs="*", help="some of the recipe's; all of them if not given")
    options = parser.parse_args()
    for seed in options.seeds:
        study = Study(options.data, options.out, seed, options.results)
        study.measure_orders()
        for arm in study.config.train.arms:
            if options.arms is None or arm.name in options.arms:
                study.measure_arm(study.plain, arm)
        study.measure_weighed()
        study.measure_again()
        study.measure_pairs()


class Study:
    """The runs of one seed: that of the arms, and one for the ranker with weighed impressions."""

    def __init__(self, data: Path, out: Path, seed: int, results: Path) -> None:
        self.data, self.out, self.seed, self.results = data, out, seed, results
        self.started = time.monotonic()

    @cached_property
    def config(self) -> Config:
        """The recipe with this seed."""
        return load_config(HERE / "recipe.yaml", [f"seed={self.seed}"])

    def run(self, name: str = "", *more: str) -> Run:
        """A run of the recipe."""
        place = self.out / f"seed-{self.seed}{name}"
        config = load_config(HERE / "recipe.yaml", [f"seed={self.seed}", *more])
        return Run(place, config, self.data, StderrConsole())

    @cached_property
    def plain(self) -> Run:
        """Logs to starting policy and ranker; the reward is the ranker's last step.

        Its best one is chosen by retrieval over the whole catalogue, which a ranker of shown items alone never learns.
        """
        run = self.run()
        for stage in (Run.prepare, Run.tokenize, Run.sft, Run.ranker):
            stage(run)
        return self.run("", f"reward={{kind: sequential, checkpoint: {_last(run)}}}")

    @cached_property
    def weighed(self) -> Run:
        """A ranker whose impressions are weighed by one over their item's exposures, relative to the most shown one."""
        folder = self.out / "data-propensity"
        if not (folder / LOG).is_file():
            folder.mkdir(parents=True, exist_ok=True)
            log = pl.read_parquet(self.data / LOG)
            shown = pl.len().over("item_id")
            log.with_columns((shown / shown.max()).alias("propensity")).write_parquet(folder / LOG)
        logs = (f"data.logs=[{(folder / LOG).resolve()}]", "data.columns.propensity=propensity")
        settings = (*logs, "ranker.propensity=snips")
        run = self.run(f"-{WEIGHED}", *settings)
        for stage in (Run.prepare, Run.tokenize, Run.ranker):
            stage(run)
        return self.run(f"-{WEIGHED}", *settings, f"reward={{kind: sequential, checkpoint: {_last(run)}}}")

    def measure_orders(self) -> None:
        """Counts, rewards, the starting policy, and the starting policy re-ranked."""
        judges = Judges(self.plain, JUDGES)
        judges.exposures()
        judges.counts()
        judges.reward()
        judges.checkpoint("sft", self.plain.path("sft", "best"))
        for name, report in judges.report("counts").items():
            self.add(name, "count", report)
        self.add("reward", "reward", judges.report("reward"))
        self.add("sft", "policy", judges.report("sft"), self._fitted("sft"))
        for weight in WEIGHTS:
            self.add(f"rerank-{weight:g}", "rerank", self.reranked(weight), {"reward_weight": weight})

    def measure_weighed(self) -> None:
        """The ranker with weighed impressions."""
        if not self.has(f"reward-{WEIGHED}"):
            judges = Judges(self.weighed, JUDGES)
            judges.exposures()
            judges.reward()
            self.add(f"reward-{WEIGHED}", "reward", judges.report("reward"))

    def measure_again(self) -> None:
        """Arms with the ranker that is weighed."""
        arms = {arm.name: arm for arm in self.config.train.arms}
        for name in AGAIN:
            arm = json.dumps(_again(arms[name], f"{name}-{WEIGHED}"))
            reward = f"reward={{kind: sequential, checkpoint: {_last(self.weighed)}}}"
            run = self.run("", reward, f"train.arms=[{arm}]")
            self.measure_arm(run, run.config.train.arms[0])

    def measure_arm(self, run: Run, arm: ArmConfig) -> None:
        """Fit one arm, and judge its last step."""
        if self.has(arm.name):
            return
        started = time.monotonic()
        run.stage(f"train/{arm.name}")
        judges = Judges(run, JUDGES)
        judges.checkpoint(f"{arm.name}/final", run.path("train", arm.name, "final"))
        entry = self._fitted("train", arm.name) | {"gate": arm.admits, "objective": arm.objective}
        entry |= {"pressure": arm.pressure, "seconds": round(time.monotonic() - started, 1)}
        self.add(arm.name, "policy", judges.report(arm.name, "final"), entry)

    def reranked(self, weight: float) -> dict[str, Any]:
        """The judges' report of log π + weight · reward."""
        run, report = self.plain, {}
        first, second = (pl.read_parquet(run.path("judges", name, SCORES)) for name in ("sft", "reward"))
        start = pl.read_parquet(run.path("judges", "sft", "users.parquet"))
        for name, judged in Judges(run, JUDGES).load().items():
            mine = first[JUDGE] == name
            scores = (first["score"] + weight * second["score"]).filter(mine).to_numpy()
            report[name] = {
                label: _against(judge_order(scores, chosen, judged.users).users, start, name, label)
                for label, chosen in judged.labels.items()
            }
        return report

    def has(self, order: str) -> bool:
        """Whether an order has its row."""
        return (self.seed, order) in {(row["seed"], row["order"]) for row in read_rows(self.results)}

    def add(self, order: str, kind: str, report: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> None:
        """One row, if it is not there yet."""
        if self.has(order):
            return
        row: dict[str, Any] = {"dataset": "kuairand-pure-log", "seed": self.seed, "order": order, "kind": kind}
        row |= {"judges": _rounded(report), **(more or {})}
        if kind == "policy" and order not in ("sft", "nll") and self.plain.path("judges", "nll", "final").is_dir():
            row["against_nll"] = _rounded(self.against(order, "nll"))
        row |= {"recipe": "research/exposed_feed/recipe.yaml", "commit": machine()["commit"]}
        row |= {"threads": os.environ.get("OMP_NUM_THREADS"), "command": "python -m research.exposed_feed.measure"}
        add_row(self.results, row)
        print(order, flush=True)

    def measure_pairs(self) -> None:
        """What one arm gains over another one, where both have been judged."""
        for one, other in PAIRS:
            if self.has(one) and self.has(other):
                report = self.against(one, other)
                self.add(
                    f"{one} less {other}",
                    "pair",
                    {n: {k: {"difference": d} for k, d in of.items()} for n, of in report.items()},
                )

    def against(self, order: str, reference: str) -> dict[str, Any]:
        """Differences of an arm's last step from that of another arm, paired by user."""
        paths = (self.plain.path("judges", name, "final", "users.parquet") for name in (order, reference))
        mine, other = (pl.read_parquet(path) for path in paths)
        found: dict[str, Any] = {}
        for name, judge in JUDGES.items():
            for label in judge.labels:
                kept = (pl.col(JUDGE) == name) & (pl.col("label") == label)
                found.setdefault(name, {})[label] = differences(mine.filter(kept), other.filter(kept))
        return found

    def _fitted(self, *place: str) -> dict[str, Any]:
        """The last validation of a fit and, of an arm, its λ and what was admitted."""
        folder = self.plain.path(*place)
        lines = [json.loads(line) for line in (folder / "validation.jsonl").read_text(encoding="utf-8").splitlines()]
        entry: dict[str, Any] = {"step": lines[-1]["step"], "validation": lines[-1]}
        steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text(encoding="utf-8").splitlines()]
        for key in ("admission", "mean_reward"):
            values = [row[key] for row in steps if key in row]
            entry |= {key: float(np.mean(values))} if values else {}
        dial = folder / "pressure.json"
        entry |= {"calibrated": json.loads(dial.read_text(encoding="utf-8"))} if dial.is_file() else {}
        weight = self.plain.path("reranking", "weight.json")
        entry |= {"chosen_weight": json.loads(weight.read_text(encoding="utf-8"))} if weight.is_file() else {}
        return entry


def _again(arm: ArmConfig, name: str) -> dict[str, Any]:
    """The same arm under another name; of a reward that is weighed already, validation chooses how much is taken."""
    content = arm.model_dump(mode="json", by_alias=True, exclude_unset=True) | {"name": name}
    if arm.objective == "distill":
        content["options"]["distill"]["reward_weight"] = "validation"
    return content


def _against(users: pl.DataFrame, start: pl.DataFrame, name: str, label: str) -> dict[str, Any]:
    reference = start.filter((pl.col(JUDGE) == name) & (pl.col("label") == label))
    return means(users) | {"difference": differences(users, reference)}


def _last(run: Run) -> Path:
    return run.path("ranker", "final").resolve()


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(part) for key, part in value.items()}
    return round(value, 5) if isinstance(value, float) else value


if __name__ == "__main__":
    run(main)
