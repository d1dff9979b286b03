"""What reward terms of other papers do at equal reward strength, under a good and a wrong reward.

    python -m research.field_arms --out runs/field-arms              the marketplace
    python -m research.field_arms --out runs/field-arms --worlds lastfm --data DIR
    python -m research.field_arms --table [--worlds lastfm]          prints the table of all rows

`plan.yaml` says what is measured. A row of `field-<world>.jsonl` is an arm at a pressure under a reward and a seed, at
its last step: metrics of test cases, and each paired difference from continued NLL with the variance of its mean over
users. Interrupted, the same command continues.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from adagrpo import metrics
from adagrpo.config import load_config
from adagrpo.errors import UserError
from adagrpo.evaluation.predictions import summarise
from adagrpo.pipeline import Run
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.make import make
from adagrpo.pipeline.stages.reranking import STAGE, reranking
from adagrpo.report.page import read_rows
from adagrpo.report.tables import MISSING, Table
from adagrpo.statistics import seed_interval
from adagrpo.trainer.pressure import mean_pressure
from research.rows import add_row

__all__ = ["arms_of", "difference", "hacked", "pooled", "summary", "table"]

HERE = Path(__file__).parent
SHOWN = ("hr@10", "ndcg@10", "true_utility@10", "hallucination@10", "reward@10")
SHORT = {"hr@10": "HR@10", "ndcg@10": "NDCG@10", "true_utility@10": "utility", "hallucination@10": "invalid"}
POINTS = {"true_utility@10": 1.0, "reward@10": 1.0}  # what is no rate; the others are printed in points
Users = dict[str, NDArray[np.float64]]


class Pooled(NamedTuple):
    """A difference over worlds, with half of its 95 % interval."""

    mean: float
    half: float

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero."""
        return abs(self.mean) > self.half


def main() -> None:
    """Measure the arms that have no row yet, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worlds", nargs="+", default=["marketplace"])
    parser.add_argument("--data", type=Path, default=Path(), help="folder of the data sets")
    parser.add_argument("--table", action="store_true", help="print the table; measures nothing")
    given = parser.parse_args()
    if given.out is None and not given.table:
        parser.error("--out or --table")
    plan = yaml.safe_load((HERE / "plan.yaml").read_text(encoding="utf-8"))
    for name in given.worlds:
        results = HERE / f"field-{name}.jsonl"
        if given.table:
            print(f"{name}\n\n" + "\n".join(table(list(read_rows(results)), plan, name)) + "\n")
            continue
        world = World(plan, name, given.out, given.data)
        entry = plan["worlds"][name]
        for pressure, seed, reward in product(entry["pressures"], entry["seeds"], entry["rewards"]):
            world.measure(pressure, seed, reward, results)


def arms_of(plan: Mapping[str, Any], world: str) -> Iterator[dict[str, Any]]:
    """Every arm of a world as a recipe has it, continued NLL first; `name` is `<arm>-p<pressure>`."""
    yield {"objective": "nll"}
    yield {"objective": "nll", "name": "nll-twice", "options": {"num_iterations": 2}}
    for pressure in plan["worlds"][world]["pressures"]:
        for arm, entry in (plan["arms"] | (plan["controls"] if pressure == 1 else {})).items():
            yield entry | {"name": f"{arm}-p{pressure:g}", "pressure": pressure}


class World:
    """A world of the plan: the runs of its seeds and rewards, which share data, Semantic IDs and starting policies."""

    def __init__(self, plan: Mapping[str, Any], name: str, out: Path, data: Path) -> None:
        self.plan, self.name, self.out, self.data = plan, name, out, data
        self.entry, self.arms = plan["worlds"][name], list(arms_of(plan, name))
        self.made: dict[tuple[int, str], tuple[Run, dict[str, Users]]] = {}

    def measure(self, pressure: float, seed: int, reward: str, results: Path) -> None:
        """Train and measure the arms of a pressure that have no row yet, under a seed and a reward."""
        done = {row["name"] for row in read_rows(results) if (row["seed"], row["reward"]) == (seed, reward)}
        for arm in self.arms:
            if arm.get("pressure") != pressure or arm["name"] in done:
                continue
            if (seed, reward) not in self.made:
                self.made[seed, reward] = self._start(seed, reward)
            started, (kind, _, _) = time.monotonic(), arm["name"].rpartition("-p")
            row = {"world": self.name, "seed": seed, "reward": reward, "arm": kind, "pressure": pressure}
            row |= {"name": arm["name"]} | self._row(*self.made[seed, reward], arm["name"], kind)
            add_row(results, row | {"seconds": round(time.monotonic() - started, 1)})
            moved = {name: f"{mean:+.4f}" for name, (mean, _) in row.get("against", {}).items()}
            print(self.name, seed, reward, arm["name"], moved, flush=True)

    def _run(self, seed: int, reward: str) -> Run:
        first = next(iter(self.entry["rewards"]))
        settings = [*self.plan["common"], *self.entry["set"], f"seed={seed}", f"train.arms={json.dumps(self.arms)}"]
        config = load_config(HERE.parents[1] / self.entry["recipe"], [*settings, *self.entry["rewards"][reward]])
        source = None if reward == first else self.out / f"{self.name}-{seed}-{first}"
        folder = self.out / f"{self.name}-{seed}-{reward}"
        return Run(folder, config, self.data / self.entry.get("data", ""), source=source)

    def _start(self, seed: int, reward: str) -> tuple[Run, dict[str, Users]]:
        """The run of a seed and a reward up to its ranker, and continued NLL on test cases."""
        shared, run = self._run(seed, next(iter(self.entry["rewards"]))), self._run(seed, reward)
        for command in (Run.prepare, Run.tokenize, Run.sft):
            command(shared)
        run.ranker()
        make(run, STAGE, reranking(run))
        baselines = {}
        for name in ("nll", "nll-twice"):
            shared.stage(f"train/{name}")
            baselines[name] = outcome(run, shared.path("train", name, "final"))[1]
        return run, baselines

    def _row(self, run: Run, baselines: Mapping[str, Users], arm: str, kind: str) -> dict[str, Any]:
        try:
            run.stage(f"train/{arm}")
        except UserError as error:  # where a gate admits nothing, no lambda gives the pressure
            return {"refused": str(error)}
        values, users = outcome(run, run.path("train", arm, "final"))
        against = self.plan["baselines"].get(kind, self.plan["baselines"]["others"])
        found = {"baseline": against, "metrics": values, "against": difference(users, baselines[against])}
        return found | _facts(run, arm)


def outcome(run: Run, weights: Path, split: str = "test") -> tuple[dict[str, float], Users]:
    """Metrics of a policy on cases of a split, and of each user; `reward@10` is the mean reward of a user's list."""
    data = RunData(run)
    models, cases = Models(data), data.measured_cases(split)
    found = models.predict(models.policy(weights).eval(), cases, models.reward(), eligible=data.eligible)
    assert found.rewards is not None, "predicted with a reward"
    utility = data.utility_at(cases)
    targets = cases.targets.astype(np.int64)
    ranks = metrics.target_rank_in(found.items, targets)
    lists = metrics.RankedLists(ranks, found.items.shape[1], found.items, found.free_valid, data.tail, utility=utility)
    users = {name: values for name, values in metrics.measure_users(lists).items() if name in SHOWN}
    top = found.rewards[:, :10].astype(np.float64)
    held = ~np.isnan(top)
    users["reward@10"] = np.where(held, top, 0.0).sum(1) / np.maximum(held.sum(1), 1)
    return summarise(found, cases, tail=data.tail, utility=utility), users


def difference(users: Users, baseline: Users) -> dict[str, list[float]]:
    """By metric, the mean of the paired differences over the users and the variance of that mean."""
    paired = {name: values - baseline[name] for name, values in users.items()}
    return {name: [float(d.mean()), float(d.var(ddof=1)) / len(d)] for name, d in paired.items()}


def _facts(run: Run, arm: str) -> dict[str, Any]:
    """What was admitted, the pressure over the fit, how often the clip was active, and the steps taken."""
    rows = list(read_rows(run.path("train", arm, "steps.jsonl")))

    def mean(name: str) -> float | None:
        values = [row[name] for row in rows if row.get(name) is not None]
        return float(np.mean(values)) if values else None

    facts = {"admission": mean("admission"), "clip_fraction": mean("clip_fraction"), "margin": mean("margin")}
    return facts | {"measured_pressure": mean_pressure(rows), "steps": len(rows)}


def pooled(rows: Sequence[Mapping[str, Any]], metric: str) -> Pooled | None:
    """One difference of an arm: Student's interval over its seeds, each another world; of one seed, over its users."""
    parts = [row["against"][metric] for row in rows if metric in row["against"]]
    if not parts:
        return None
    if len(parts) == 1:
        mean, variance = parts[0]
        return Pooled(mean, 1.96 * float(np.sqrt(variance)))
    over = seed_interval([mean for mean, _ in parts])
    return Pooled(over.mean, over.high - over.mean)


def table(rows: Sequence[Mapping[str, Any]], plan: Mapping[str, Any], world: str) -> list[str]:
    """Lines of Markdown: an arm and a reward, at every pressure; what is clear in bold, what is hacked named."""
    heads = ["reward", "pressure", "arm", "seeds", "Δ HR@10", "Δ NDCG@10", "Δ true utility", "Δ invalid@10"]
    lines = ["| " + " | ".join([*heads, "invalid@10", "Δ reward", ""]) + " |"]
    lines.append("|---|--:|---|--:|--:|--:|--:|--:|--:|--:|---|")
    for reward in plan["worlds"][world]["rewards"]:
        for pressure in sorted(plan["worlds"][world]["pressures"]):
            for arm in plan["arms"] | plan["controls"]:
                key = (reward, pressure, arm)
                here = [row for row in rows if (row["reward"], row["pressure"], row["arm"]) == key and "against" in row]
                if here:
                    lines.append(_line(key, here))
    return lines


def summary(rows: Sequence[Mapping[str, Any]], strength: float = 1.0) -> Table:
    """The differences of an arm at one strength, under a good and a wrong reward in simulation.

    Args:
        rows: of a simulated world, or of logs, whose one reward is neither known to be good nor wrong.
        strength: whose differences are shown, in points and thousandths of utility; in bold if clear.
    """
    simulated = any(row["reward"] == "good" for row in rows)
    shown: dict[str, tuple[str, ...]] = {"good": ("hr@10", "ndcg@10", "true_utility@10", "hallucination@10")}
    shown["wrong"] = ("hr@10", "true_utility@10", "hallucination@10")
    if not simulated:
        shown = {rows[0]["reward"]: ("hr@10", "ndcg@10", "hallucination@10")}
    lines: list[tuple[str, ...]] = []
    clear = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if (row["arm"], row["pressure"]) == (arm, strength) and "against" in row]
        at = {reward: [row for row in mine if row["reward"] == reward] for reward in shown}
        values = [(name, pooled(at[reward], name)) for reward in shown for name in shown[reward]]
        clear += [(len(lines), place) for place, (_, value) in enumerate(values, start=1) if value and value.clear]
        lines.append((arm, *(_short(*one, 1 if simulated else 2) for one in values)))
    names = [f"{SHORT[name]}, {reward}" if simulated else SHORT[name] for reward in shown for name in shown[reward]]
    worlds = len({row["seed"] for row in rows if row["pressure"] == strength})
    first = f"arm, over {worlds} worlds" if worlds > 1 else "arm"
    return Table.of((first, *names), lines, best=clear)


def hacked(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the reward of an arm's lists rises and their true utility falls, both clearly."""
    utility, reward = (pooled(rows, name) for name in ("true_utility@10", "reward@10"))
    if utility is None or reward is None:
        return False
    return utility.clear and reward.clear and utility.mean < 0 < reward.mean


def _short(name: str, value: Pooled | None, digits: int) -> str:
    """A difference in points or thousandths."""
    if value is None:
        return MISSING
    scale = 1000.0 if name == "true_utility@10" else 100.0
    return f"{value.mean * scale:+.{digits}f} ± {value.half * scale:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _line(key: tuple[str, float, str], rows: Sequence[Mapping[str, Any]]) -> str:
    found = {name: pooled(rows, name) for name in SHOWN}
    invalid = float(np.mean([row["metrics"]["hallucination@10"] for row in rows]))
    cells = {name: _cell(name, value) for name, value in found.items()}
    shown = [cells["hr@10"], cells["ndcg@10"], cells["true_utility@10"], cells["hallucination@10"]]
    parts = [key[0], f"{key[1]:g}", key[2], str(len(rows)), *shown, f"{invalid:.2%}", cells["reward@10"]]
    return "| " + " | ".join([*parts, "hacked" if hacked(rows) else ""]) + " |"


def _cell(name: str, value: Pooled | None) -> str:
    if value is None:
        return "–"
    scale = POINTS.get(name, 100.0)
    digits = 2 if scale == 100 else 4 if name == "true_utility@10" else 3
    text = f"{value.mean * scale:+.{digits}f} ± {value.half * scale:.{digits}f}"
    return f"**{text}**" if value.clear else text
