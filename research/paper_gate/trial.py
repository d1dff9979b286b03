"""The trial of the paper's gate: all arms of a set at equal pressure, in one comparison under every seed.

    python -m research.paper_gate.trial --data DIR --out runs/paper-gate --sets lastfm amazon18-scientific

`plan.yaml` says what is tried. Per set this folder keeps `admission-<set>.jsonl`, what the thresholds admit at the
starting policy and which were chosen; `arms-<set>.jsonl`, a row for each arm, checkpoint and seed, until all seeds are
done; then `<set>.jsonl` and `<set>.comparison.json`, the comparison. Stopped at any point, the same
command continues.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from adagrpo.config import Config, ObjectiveConfig
from adagrpo.console import StderrConsole
from adagrpo.errors import UserError
from adagrpo.pipeline import Run
from adagrpo.pipeline.compare import Comparison
from adagrpo.report import read_rows
from adagrpo.storage.hashes import hash_json
from adagrpo.storage.marks import claim
from adagrpo.storage.writing import write_file
from research.command import run
from research.fair_trial import tune as fair
from research.paper_gate.admission import admission_rows, chosen_thresholds, training_evidence
from research.rows import add_row, keep_rows

__all__ = ["carry_out", "trial_config"]

HERE = Path(__file__).parent


def arm_name(rollouts: str, gate: str, pressure: float) -> str:
    """How an arm is called.

    Example:
        >>> arm_name("beam", "paper", 1)
        'beam-paper-p1'
    """
    return f"{rollouts}-{gate}-p{pressure:g}"


def trial_config(plan: Mapping[str, Any], fair_plan: Mapping[str, Any], name: str, at: Mapping[str, Any]) -> Config:
    """The recipe of a set with all arms of the plan.

    Args:
        plan: the content of plan.yaml.
        fair_plan: that of the fair trial, for the recipe.
        name: of the set.
        at: thresholds, by the name of the rollouts.
    """
    arms, pairs = ["nll"], []
    for rollouts, options in plan["rollouts"].items():
        for pressure, gates in plan["arms"].items():
            kept = [gate for gate in gates if gate != "inverted" or name not in plan["short"]]
            for gate in kept:
                own = options | (at[rollouts] if gate in ("paper", "random", "inverted") else {})
                fields = {"name": arm_name(rollouts, gate, pressure), "pressure": pressure, "options": own}
                arms.append(plan["gates"][gate] | fields)
            others = [gate for gate in kept if gate != "paper" and "paper" in kept]
            pairs += [[arm_name(rollouts, gate, pressure) for gate in ("paper", other)] for other in others]
            if "random" in kept:
                pairs.append([arm_name(rollouts, gate, pressure) for gate in ("random", "none")])
    settled = [*fair_plan["trial"]["settings"], "ranker.fit.epochs=1", "ranker.fit.validations=1"]
    measured = fair_plan["trial"]["validation_users"].get(name)
    settled += [] if measured is None else [f"evaluation.validation_users={measured}"]
    settled += [f"train.arms={json.dumps(arms)}", f"compare.pairs={json.dumps(pairs)}"]
    return fair.recipe_of(fair_plan, name, *settled)


def carry_out(name: str, data: Path, out: Path) -> None:
    """The trial of one set."""
    plan = yaml.safe_load((HERE / "plan.yaml").read_text(encoding="utf-8"))
    fair_plan = fair.read_plan(name)
    seeds = fair_plan["seeds"].get(name, fair_plan["seeds"]["others"])
    folder, directory = fair.folder_of(fair_plan, name, data), out / name
    default = {kind: {"tau": 0.5, "rho": 0.3} for kind in plan["rollouts"]}
    claim(directory, "comparison")
    start = _comparison(trial_config(plan, fair_plan, name, default), folder, directory, seeds)
    thresholds = _thresholds(plan, name, start.run_of(seeds[0]))
    comparison = _comparison(trial_config(plan, fair_plan, name, thresholds), folder, directory, seeds)
    for seed in seeds:
        (made,) = comparison.make_runs([seed])
        _keep_seed(name, seed, made)
    comparison.carry_out()
    keep_rows(directory / "results.jsonl", HERE / f"{name}.jsonl")
    write_file(HERE / f"{name}.comparison.json", (directory / "comparison.json").read_text(encoding="utf-8"))
    (HERE / f"arms-{name}.jsonl").unlink(missing_ok=True)  # the comparison's rows hold the same


def _comparison(config: Config, data: Path, directory: Path, seeds: list[int]) -> Comparison:
    arms = [arm.name for arm in config.train.arms] + ["rerank"]
    return Comparison(directory, config, data, objectives=arms, seeds=seeds, console=StderrConsole())


def _thresholds(plan: Mapping[str, Any], name: str, run: Run) -> dict[str, dict[str, float]]:
    """What the rule chooses for each kind of rollouts; measured once."""
    results = HERE / f"admission-{name}.jsonl"
    if any(row["plan"] != _plan_hash(plan) for row in read_rows(results)):
        raise UserError(f"{results}: holds rows of another plan; move them away to measure anew")
    for rollouts, options in plan["rollouts"].items():
        if rollouts in {row["rollouts"] for row in read_rows(results) if row["chosen"]}:
            continue
        with run.locked():
            for make in (Run.prepare, Run.tokenize, Run.sft, Run.ranker):
                make(run)
        evidence = training_evidence(run, ObjectiveConfig(**options), plan["thresholds"]["samples"])
        rows = admission_rows(*evidence, plan["thresholds"])
        chosen = chosen_thresholds(rows, plan["thresholds"])
        known = {(row["rollouts"], row["tau"], row["rho"]) for row in read_rows(results)}
        rows.sort(key=lambda row: (row["tau"], row["rho"]) == tuple(chosen.values()))  # the chosen pair ends the rows
        for row in rows:
            if (rollouts, row["tau"], row["rho"]) not in known:
                about = {"dataset": name, "plan": _plan_hash(plan), "rollouts": rollouts, "seed": run.config.seed}
                add_row(results, about | row | {"chosen": (row["tau"], row["rho"]) == tuple(chosen.values())})
    return {row["rollouts"]: {"tau": row["tau"], "rho": row["rho"]} for row in read_rows(results) if row["chosen"]}


def _plan_hash(plan: Mapping[str, Any]) -> str:
    """What the thresholds of a set follow from."""
    return hash_json({key: plan[key] for key in ("rollouts", "thresholds")})[:12]


def _keep_seed(name: str, seed: int, folder: Path) -> None:
    """A row for each arm and checkpoint of a seed, from what its run measured."""
    results = HERE / f"arms-{name}.jsonl"
    stages = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["stages"]
    known = {(row["arm"], row["checkpoint"], row["seed"]) for row in read_rows(results)}
    for arm, content in stages.items():
        points = {"best": content} if "test" in content else content  # the starting policy has no last step
        for checkpoint in ("best", "final"):
            test = points.get(checkpoint, {}).get("test")
            if test is not None and (arm, checkpoint, seed) not in known:
                metrics = {key: test[key] for key in ("hr@10", "ndcg@10", "hr@50", "hallucination@10") if key in test}
                row = {"dataset": name, "arm": arm, "seed": seed, "checkpoint": checkpoint, "split": "test"}
                add_row(results, row | {"metrics": metrics, "admission": content.get("admission")})


def main() -> None:
    """Carry out the trial of the sets that are asked for."""
    given = fair.set_parser(__doc__).parse_args()
    for name in given.sets:
        carry_out(name, given.data, given.out)


if __name__ == "__main__":
    run(main)
