"""Which test of the paper's gate keeps Semantic IDs valid: each test by itself against a random gate of its size.

    python -m research.paper_gate.alone --data DIR --runs runs/paper-gate --out runs/alone \\
      --sets amazon18-scientific

GRPO on samples at reward strength 1 from the starting policy of the trial's seed 1, with the thresholds that its rule
chose; a test is left out by the threshold that lets everything pass. A row of `alone-<set>.jsonl` is an arm at its last
step, on test cases: metrics, the difference `less_nll` from continued NLL and, of a test, `less_random` from the random
gate that admits as many groups of each batch; each with the variance of its mean over users.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from adagrpo.console import StderrConsole
from adagrpo.pipeline import Run
from adagrpo.pipeline.make import make
from adagrpo.report.page import read_rows
from research.command import run
from research.fair_trial import tune as fair
from research.field_arms.measure import Users, difference, outcome
from research.paper_gate.admission import OFF, TESTS
from research.rows import add_row

HERE = Path(__file__).parent
SEED, ROLLOUTS, STRENGTH = 1, "samples", 1


def arms_of(plan: Mapping[str, Any], chosen: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A random gate and the gate for each test, as a recipe has them.

    Args:
        plan: the content of plan.yaml.
        chosen: thresholds of the trial, `tau` and `rho`.
    """
    at = {"tau": chosen["tau"], "tau_reward": chosen["tau"], "rho": chosen["rho"]}
    options = {test: plan["rollouts"][ROLLOUTS] | OFF | {key: at[key]} for test, key in TESTS.items()}
    return [
        plan["gates"][gate] | {"name": f"{test}-{gate}", "pressure": STRENGTH, "options": options[test]}
        for test in reversed(options)  # the test that selects comes first
        for gate in ("random", "paper")
    ]


def measure(name: str, data: Path, runs: Path, out: Path) -> None:
    """The rows of a set that are not there yet."""
    results = HERE / f"alone-{name}.jsonl"
    plan = yaml.safe_load((HERE / "plan.yaml").read_text(encoding="utf-8"))
    fair_plan = fair.read_plan(name)
    rows = read_rows(HERE / f"admission-{name}.jsonl")
    (chosen,) = (row for row in rows if row["chosen"] and row["rollouts"] == ROLLOUTS)
    arms = arms_of(plan, chosen)
    config = fair.recipe_of(
        fair_plan,
        name,
        *fair_plan["trial"]["settings"],
        "train.fit.validations=0",
        f"train.arms={json.dumps(['nll', *arms])}",
        f"seed={SEED}",
    )
    source = runs / name / f"seed-{SEED}"
    made = Run(out / name, config, fair.folder_of(fair_plan, name, data), StderrConsole(), source=source)
    _, baseline = outcome(made, source / "train" / "nll" / "final")
    known = {row["arm"] for row in read_rows(results)}
    random: Users = {}
    for arm in (arm["name"] for arm in arms):
        if {arm, arm.replace("random", "paper")} <= known:
            continue
        folder = make(made, f"train/{arm}", made.stages.declared(config)[f"train/{arm}"](made))
        metrics, users = outcome(made, folder / "final")
        row = {"dataset": name, "seed": SEED, "arm": arm, "metrics": metrics, "less_nll": difference(users, baseline)}
        row["admission"] = float(np.mean([step["admission"] for step in read_rows(folder / "steps.jsonl")]))
        if arm.endswith("random"):
            random = users
        else:
            row["less_random"] = difference(users, random)
        if arm not in known:
            add_row(results, row)


def main() -> None:
    """Measure the sets that are asked for."""
    parser = fair.set_parser(__doc__)
    parser.add_argument("--runs", type=Path, required=True, help="the trial's runs, which are read")
    given = parser.parse_args()
    for name in given.sets:
        measure(name, given.data, given.runs, given.out)


if __name__ == "__main__":
    run(main)
