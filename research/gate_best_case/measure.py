"""Where selection can help: a reward that is wrong for some, judged at positions that nobody memorised.

    python -m research.gate_best_case.measure --out runs/gate
    python -m research.gate_best_case.measure --out runs/gate-paper --gate paper

Worlds, rewards and pairs are those of `worlds.yaml`, the arms those of `recipe.yaml` or, for the paper's gate, those of
`worlds.yaml`. A row of `gates.jsonl` or `paper.jsonl` is a world with a reward: each arm's true utility and hit rate on
test cases against continued NLL, and one arm against another, each with the variance of its mean over users.
Interrupted, the same command continues. `--thresholds` prints what `research/paper_gate/plan.yaml` would choose in a
world that has no row.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from adagrpo.pipeline import Run
from adagrpo.pipeline.factories import read_reward_weights
from adagrpo.pipeline.make import make
from adagrpo.pipeline.stages.reranking import FILE, STAGE, reranking
from adagrpo.report.page import read_rows
from adagrpo.trainer.pressure import mean_pressure
from research.command import run
from research.gate_best_case.world import BASELINE, Outcome, World
from research.paper_gate.admission import admission_rows, chosen_thresholds, training_evidence
from research.rows import add_row

__all__ = ["paired"]

HERE = Path(__file__).parent
RESULTS = {"rollout_miss": HERE / "gates.jsonl", "paper": HERE / "paper.jsonl"}
APART = 309  # seed of a world that has no row
VALUES = ("true_utility@10", "hr@10")


def main() -> None:
    """Measure every pair of a world and a reward that has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gate", choices=RESULTS, default="rollout_miss")
    parser.add_argument("--thresholds", action="store_true", help="print the paper's thresholds of a world of its own")
    given = parser.parse_args()
    plan, results = yaml.safe_load((HERE / "worlds.yaml").read_text(encoding="utf-8")), RESULTS[given.gate]
    if given.thresholds:
        print(thresholds(given.out, plan))
        return
    for name, entry in plan["worlds"].items():
        done = {(row["world"], row["reward"]) for row in read_rows(results)}
        missing = [reward for reward in entry["rewards"] if (name, reward) not in done]
        if missing:
            entry = entry | {"set": [*entry["set"], *plan["gates"][given.gate]]}
            world = World(name, entry, given.out, HERE / "recipe.yaml")
            world.prepare()
        for reward in missing:
            started = time.monotonic()
            row = {"world": name, "seed": entry["seed"], "reward": reward}
            row |= measure(world, reward, plan["rewards"][reward], plan["pairs"])
            add_row(results, row | {"seconds": round(time.monotonic() - started, 1)})
            print(name, reward, row["pairs"], flush=True)


def measure(world: World, name: str, reward: str, pairs: list[list[str]]) -> dict[str, Any]:
    """Train all arms with a reward, and hold them against continued NLL and against each other."""
    folder = world.out / f"{world.name}.{name.replace(' ', '-')}"
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was cut off
    run = Run(folder, world.config([f"reward={reward}"]), Path(), source=world.run.directory)
    run.ranker()
    teacher = read_reward_weights(make(run, STAGE, reranking(run)) / FILE).distill
    outcomes: dict[str, Outcome] = {BASELINE: world.baseline}
    facts = {}
    for arm in run.config.train.arms:
        if arm.name != BASELINE:
            run.stage(f"train/{arm.name}")
            outcomes[arm.name] = world.outcome(run, arm.name)
            facts[arm.name] = _facts(run, arm.name)
    held = {
        f"{objective}-{first} less {objective}-{second}": paired(
            outcomes[f"{objective}-{first}"], outcomes[f"{objective}-{second}"]
        )
        for objective in ("pressed", "taught")
        for first, second in pairs
        if {f"{objective}-{first}", f"{objective}-{second}"} <= outcomes.keys()
    }
    return {
        "users": len(world.cases),
        "teacher_weight": teacher,
        "baseline": {key: float(part.mean()) for key, part in zip(VALUES, world.baseline, strict=True)},
        "arms": {arm: facts[arm] | paired(result, world.baseline) for arm, result in outcomes.items() if arm in facts},
        "pairs": held,
    }


def thresholds(out: Path, plan: Mapping[str, Any]) -> dict[str, Any]:
    """What the rule of the paper's gate chooses under the reward as it is, in a world that has no row."""
    entry = {"seed": APART, "set": plan["gates"]["paper"]}
    world = World("apart", entry, out, HERE / "recipe.yaml")
    world.prepare()
    run = Run(out / "apart.right", world.config([f"reward={plan['rewards']['right']}"]), Path(), source=out / "apart")
    run.ranker()
    rule = yaml.safe_load((HERE.parent / "paper_gate" / "plan.yaml").read_text("utf-8"))["thresholds"]
    rows = admission_rows(*training_evidence(run, run.config.objective, rule["samples"]), rule)
    chosen = chosen_thresholds(rows, rule)
    return next(row for row in rows if chosen.items() <= row.items())


def paired(outcome: Outcome, reference: Outcome) -> dict[str, list[float]]:
    """By metric, the mean of the paired differences over test cases and the variance of that mean.

    Args:
        outcome: (N,) true utility and (N,) hit rate.
        reference: the same cases.
    """
    differences = [values - other for values, other in zip(outcome, reference, strict=True)]
    return {
        name: [float(values.mean()), float(values.var(ddof=1)) / len(values)]
        for name, values in zip(VALUES, differences, strict=True)
    }


def _facts(run: Run, arm: str) -> dict[str, Any]:
    """What share was admitted, and the pressure over the fit."""
    rows = list(read_rows(run.path("train", arm, "steps.jsonl")))
    admitted = [row["admission"] for row in rows if row.get("admission") is not None]
    return {"admission": float(np.mean(admitted)) if admitted else None, "pressure": mean_pressure(rows)}


if __name__ == "__main__":
    run(main)
