"""The second trial of the paper's gate: invalid Semantic IDs as a ratio to a random gate's, ten seeds.

    python -m research.paper_gate.ratio --data DIR --out runs/ratio          chooses the sets, then trains all arms
    python -m research.paper_gate.ratio --read                               the primary test, once all rows are there

`ratio.yaml` was written before the first row. `ratio-sets.jsonl` holds what chose sets, learning rates and thresholds,
on validation cases of seed 0; `ratio.jsonl` a row an arm and seed, at the last step on test cases: metrics, and each
paired difference from continued NLL and from the random gate of its size, with the variance of its mean over users.
Stopped at any point, the same command continues.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from adagrpo.config import ArmConfig, Config, ObjectiveConfig, load_config
from adagrpo.console import StderrConsole
from adagrpo.errors import UserError
from adagrpo.pipeline import Run
from adagrpo.pipeline.compare_arms import weight_used
from adagrpo.pipeline.directory import locked
from adagrpo.report.page import read_rows
from adagrpo.statistics import holm, seed_interval
from research.command import run
from research.field_arms.measure import Users, difference, outcome
from research.paper_gate.admission import admission_rows, chosen_thresholds, training_evidence
from research.rows import add_row

__all__ = ["arm_of", "log_ratios", "primary_test", "read_plan"]

HERE = Path(__file__).parent
SETS, ROWS = HERE / "ratio-sets.jsonl", HERE / "ratio.jsonl"
INVALID = "hallucination@10"


def read_plan() -> dict[str, Any]:
    """The content of ratio.yaml."""
    plan: dict[str, Any] = yaml.safe_load((HERE / "ratio.yaml").read_text(encoding="utf-8"))
    return plan


def arm_of(
    plan: Mapping[str, Any],
    rollouts: str,
    arm: str,
    thresholds: Mapping[str, float],
    *,
    strongest: float | None,
    admission: float,
) -> dict[str, Any]:
    """An arm as a recipe has it.

    Args:
        plan: the content of ratio.yaml.
        rollouts: one of its kinds.
        arm: gate and strength.
        thresholds: tau and rho.
        strongest: λ0; None where it is not known yet, which `none-1` and strength `a` do not need.
        admission: of the gate at the starting policy of seed 0, for strength `c`.

    Example:
        >>> plan = {"gates": {"paper": {"objective": "adagrpo"}}, "rollouts": {"beam": {"rollout": "beam"}}}
        >>> arm_of(plan, "beam", "paper-c", {"tau": 0.2, "rho": 0.5}, strongest=6.0, admission=0.12)["lambda"]
        50.0
    """
    gate, _, strength = arm.partition("-")
    own = plan["rollouts"][rollouts] | (thresholds if gate != "none" else {})
    entry = plan["gates"][gate] | {"name": f"{rollouts}-{arm}", "options": own}
    if strength in ("1", "a"):
        return dict(entry | {"pressure": 1})
    assert strongest is not None, "arms without a gate at gradient ratio 1 come first"
    times = {"b": 1.0, "c": 1 / admission}.get(strength)
    return dict(entry | {"lambda": round(strongest * (float(strength) if times is None else times), 6)})


class Trial:
    """One seed of a set: a run with its starting policy, reward and continued NLL."""

    def __init__(self, plan: Mapping[str, Any], name: str, rate: float, seed: int, data: Path, out: Path) -> None:
        self.plan, self.name, self.rate, self.seed = plan, name, rate, seed
        entry = plan["sets"][name]
        self.data, self.folder = data / entry.get("folder", name), out / f"{name}-{seed}"

    def config(self, arms: Sequence[Mapping[str, Any]]) -> Config:
        """The recipe with some arms beside NLL."""
        entry = self.plan["sets"][self.name]
        settings = [*self.plan["settings"], *entry.get("set", []), f"seed={self.seed}"]
        settings += [f"train.fit.learning_rate={self.rate}", f"train.arms={json.dumps(['nll', *arms])}"]
        return load_config(HERE.parents[1] / entry["recipe"], settings)

    def start(self) -> Run:
        """The run with its starting policy and trees."""
        made = Run(self.folder, self.config([]), self.data, StderrConsole())
        with locked(made):
            for make in (Run.prepare, Run.tokenize, Run.sft, Run.ranker):
                make(made)
        return made

    def users_of(self, arm: str, split: str = "test", entry: Mapping[str, Any] | None = None) -> tuple[Run, Users]:
        """Train an arm if it is not trained, and what each user has of it; kept beside the run.

        Args:
            arm: its name.
            split: whose cases are measured.
            entry: the arm as a recipe has it; None is continued NLL.
        """
        made = Run(self.folder, self.config([] if entry is None else [entry]), self.data, StderrConsole())
        folder = made.stage(f"train/{arm}")
        kept = self.folder.parent / f"{self.folder.name}-{self.rate:g}-{arm}-{split}.npz"
        if not kept.is_file():
            np.savez(kept, **outcome(made, folder / "final", split)[1])  # type: ignore[arg-type]
        with np.load(kept) as held:
            return made, {name: held[name] for name in held.files}


def choose_sets(plan: Mapping[str, Any], data: Path, out: Path) -> dict[str, dict[str, Any]]:
    """The sets of the trial with their learning rate and thresholds, measured where they are not yet.

    Returns:
        By set its `rate` and, by the kind of rollouts, the row of the chosen thresholds.
    """
    chosen: dict[str, dict[str, Any]] = {}
    for name in plan["sets"]:
        for rate in plan["learning_rates"]:
            if name not in chosen and len(chosen) < plan["wanted"] and _invents(plan, name, rate, data, out):
                chosen[name] = {"rate": rate} | _thresholds(plan, name, rate, data, out)
    return chosen


def _invents(plan: Mapping[str, Any], name: str, rate: float, data: Path, out: Path) -> bool:
    """Measure whether an arm without a gate invents enough on validation cases of seed 0."""
    found = [row for row in read_rows(SETS) if (row["dataset"], row.get("rate")) == (name, rate) and "invalid" in row]
    if not found:
        trial = Trial(plan, name, rate, 0, data, out)
        trial.start()
        invalid = {}
        for rollouts in plan["rollouts"]:
            entry = arm_of(plan, rollouts, "none-1", {}, strongest=None, admission=1.0)
            users = trial.users_of(entry["name"], "validation", entry)[1]
            invalid[rollouts] = float(users[INVALID].mean())
        found = [{"dataset": name, "rate": rate, "seed": 0, "split": "validation", "invalid": invalid}]
        add_row(SETS, found[0])
    return bool(np.mean(list(found[0]["invalid"].values())) >= plan["invalid"])


def _thresholds(plan: Mapping[str, Any], name: str, rate: float, data: Path, out: Path) -> dict[str, Any]:
    """The chosen pair of each kind of rollouts, at the starting policy of seed 0."""
    chosen = {}
    for rollouts, options in plan["rollouts"].items():
        found = [row for row in read_rows(SETS) if (row["dataset"], row.get("rollouts")) == (name, rollouts)]
        if not found:
            made = Trial(plan, name, rate, 0, data, out).start()
            evidence = training_evidence(made, ObjectiveConfig(**options), plan["thresholds"]["samples"])
            rows = admission_rows(*evidence, plan["thresholds"])
            bands = plan["thresholds"]["admission"]
            band = next((one for one in bands if any(one[0] <= row["gate"] <= one[1] for row in rows)), bands[-1])
            pair = chosen_thresholds(rows, {"admission": band})
            (row,) = (row for row in rows if {key: row[key] for key in pair} == pair)
            found = [{"dataset": name, "rollouts": rollouts, "seed": 0} | row]
            add_row(SETS, found[0])
        chosen[rollouts] = found[0]
    return chosen


def measure(plan: Mapping[str, Any], name: str, chosen: Mapping[str, Any], seed: int, data: Path, out: Path) -> None:
    """Train and measure the arms of a seed that have no row yet."""
    kinds = [kind for kind, seeds in plan["seeds"].items() if seed in seeds]
    wanted = [(rollouts, arm) for kind in kinds for arm in plan["arms"][kind] for rollouts in plan["rollouts"]]
    done = {row["name"] for row in read_rows(ROWS) if (row["dataset"], row["seed"]) == (name, seed)}
    if {"nll", *(f"{rollouts}-{arm}" for rollouts, arm in wanted)} <= done:
        return
    trial = Trial(plan, name, chosen["rate"], seed, data, out)
    trial.start()
    _, baseline = trial.users_of("nll")
    about = {"dataset": name, "seed": seed, "rate": chosen["rate"], "checkpoint": "final", "split": "test"}
    if "nll" not in done:
        add_row(ROWS, about | {"name": "nll", "rollouts": None, "arm": "nll"} | _measures(baseline))
    strongest: dict[str, float] = {}
    measured: dict[str, Users] = {}
    for rollouts, arm in wanted:
        pair = {key: chosen[rollouts][key] for key in ("tau", "rho")}
        admission = chosen[rollouts]["gate"]
        entry = arm_of(plan, rollouts, arm, pair, strongest=strongest.get(rollouts), admission=admission)
        begun = time.monotonic()
        made, measured[entry["name"]] = trial.users_of(entry["name"], entry=entry)
        weight = weight_used(made, ArmConfig.model_validate(entry))
        if arm == "none-1":
            assert weight is not None, "an arm at a gradient ratio has a λ"
            strongest[rollouts] = weight
        if entry["name"] in done:
            continue
        users = measured[entry["name"]]
        row = about | {"name": entry["name"], "rollouts": rollouts, "arm": arm, "lambda": weight} | _measures(users)
        steps = list(read_rows(made.path("train", entry["name"], "steps.jsonl")))
        row["admission"] = float(np.mean([step["admission"] for step in steps]))
        row["less_nll"] = difference(users, baseline)
        random = measured.get(f"{rollouts}-{arm.replace('paper', 'random')}")
        if arm.startswith("paper") and random is not None:
            row["less_random"] = difference(users, random)
        add_row(ROWS, row | {"seconds": round(time.monotonic() - begun, 1)})


def _measures(users: Users) -> dict[str, Any]:
    """Means over users, and the count of invalid Semantic IDs among the first ten of each."""
    invalid = round(float(users[INVALID].sum()) * 10)
    return {
        "users": len(users[INVALID]),
        "invalid": invalid,
        "metrics": {name: float(v.mean()) for name, v in users.items()},
    }


def log_ratios(rows: Sequence[Mapping[str, Any]], one: str, other: str) -> dict[int, float]:
    """By seed, the log of the ratio of invalid Semantic IDs, counts of all rollouts added, one half added to each sum.

    Args:
        rows: of one set.
        one: an arm, gate and strength.
        other: that it is divided by.

    Example:
        >>> rows = [{"seed": 1, "arm": "paper-a", "invalid": 4}, {"seed": 1, "arm": "paper-a", "invalid": 5},
        ...         {"seed": 1, "arm": "random-a", "invalid": 18}]
        >>> round(log_ratios(rows, "paper-a", "random-a")[1], 4)  # log(9.5 / 18.5)
        -0.6665
    """
    counts: dict[tuple[int, str], int] = {}
    for row in rows:
        key = row["seed"], row["arm"]
        counts[key] = counts.get(key, 0) + row["invalid"]
    seeds = sorted({seed for seed, arm in counts if arm == one and (seed, other) in counts})
    return {seed: float(np.log((counts[seed, one] + 0.5) / (counts[seed, other] + 0.5))) for seed in seeds}


def primary_test(plan: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The primary test of each set: ratio, its 95 % interval, p and p by Holm.

    Args:
        plan: the content of ratio.yaml.
        rows: of all sets.

    Raises:
        UserError: a seed of a set is not done.
    """
    found: list[dict[str, Any]] = []
    names = list(dict.fromkeys(row["dataset"] for row in rows))
    for name in names:
        mine = [row for row in rows if row["dataset"] == name]
        for seed in plan["seeds"]["primary"]:
            for rollouts in plan["rollouts"]:
                have = {row["arm"] for row in mine if (row["seed"], row["rollouts"]) == (seed, rollouts)}
                if missing := [arm for arm in plan["arms"]["primary"] if arm not in have]:
                    raise UserError(f"{name}, seed {seed}: {rollouts}-{missing[0]} is not measured yet")
        logs = list(log_ratios(mine, "paper-a", "random-a").values())
        test = seed_interval(logs)
        found.append({"dataset": name, "ratio": float(np.exp(test.mean)), "seeds": len(logs)})
        found[-1] |= {"interval": [float(np.exp(test.low)), float(np.exp(test.high))], "p": test.p_value}
    if len(found) < plan["wanted"]:
        raise UserError(f"{len(found)} of {plan['wanted']} sets have rows; read when whole")
    for row, p in zip(found, holm([row["p"] for row in found]), strict=True):
        row["p_holm"] = p
    return found


def main() -> None:
    """Carry out the trial, or read its primary test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder of all sets")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--read", action="store_true", help="the primary test, once all rows are there")
    given = parser.parse_args()
    plan = read_plan()
    if given.read:
        for row in primary_test(plan, list(read_rows(ROWS))):
            print(json.dumps(row))
        return
    if given.data is None or given.out is None:
        parser.error("--data and --out, or --read")
    given.out.mkdir(parents=True, exist_ok=True)
    chosen = choose_sets(plan, given.data, given.out)
    for seed in plan["seeds"]["primary"]:
        for name, about in chosen.items():
            measure(plan, name, about, seed, given.data, given.out)


if __name__ == "__main__":
    run(main)
