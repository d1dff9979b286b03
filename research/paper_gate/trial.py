"""The trial of the paper's gate: all arms of a set at equal pressure, in one comparison under every seed.

    python -m research.paper_gate.trial --data DIR --out runs/paper-gate --sets lastfm amazon18-scientific

`plan.yaml` says what is tried. Per set this folder keeps `admission-<set>.jsonl`, what the thresholds admit at the
starting policy and which were chosen; `gate-<set>.comparison.json`, the comparison of the seeds that are done, and
`gate-<set>.jsonl`, its rows, written anew after each. Stopped at any point, the same command continues. With
`--compare` it trains nothing, and only compares the seeds that are done.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from adagrpo.config import CompareConfig, Config, ObjectiveConfig
from adagrpo.console import StderrConsole
from adagrpo.data.columns import USER_ID
from adagrpo.errors import UserError
from adagrpo.evaluation.comparison import Measured, compare, compare_pairs
from adagrpo.lists.names import RERANK
from adagrpo.pipeline import Run
from adagrpo.pipeline.compare import Comparison
from adagrpo.pipeline.compare_arms import evaluation_folder
from adagrpo.pipeline.directory import locked
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.stages.ranker_report import read_measured
from adagrpo.report.page import read_rows
from adagrpo.storage.hashes import hash_json, with_hash
from adagrpo.storage.marks import claim
from adagrpo.storage.writing import write_file
from research.command import run
from research.fair_trial import tune as fair
from research.paper_gate.admission import admission_rows, chosen_thresholds, training_evidence
from research.rows import add_row, keep_rows

__all__ = ["carry_out", "compare_done", "trial_config"]

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
    _choose_thresholds(plan, name, start.run_of(seeds[0]))
    config = trial_config(plan, fair_plan, name, _thresholds(plan, name))
    comparison = _comparison(config, folder, directory, seeds)
    for done, seed in enumerate(seeds, start=1):
        comparison.make_runs([seed])
        keep_comparison(name, comparison.plan, [comparison.run_of(one) for one in seeds[:done]])
    comparison.carry_out()
    keep_rows(directory / "results.jsonl", HERE / f"gate-{name}.jsonl")
    write_file(HERE / f"gate-{name}.comparison.json", (directory / "comparison.json").read_text(encoding="utf-8"))


def compare_done(name: str, data: Path, out: Path) -> None:
    """The comparison of the seeds whose runs are done, from what they hold.

    Raises:
        UserError: none is done.
    """
    plan = yaml.safe_load((HERE / "plan.yaml").read_text(encoding="utf-8"))
    fair_plan = fair.read_plan(name)
    seeds = fair_plan["seeds"].get(name, fair_plan["seeds"]["others"])
    config = trial_config(plan, fair_plan, name, _thresholds(plan, name))
    folders = {seed: out / name / f"seed-{seed}" for seed in seeds}
    data = fair.folder_of(fair_plan, name, data)
    done = [
        Run(folder, config.model_copy(update={"seed": seed}), data)
        for seed, folder in folders.items()
        if (folder / "evaluate" / RERANK).is_dir()
    ]
    if not done:
        raise UserError(f"{out / name}: no seed is done")
    family = tuple(arm for arm in _arms(config) if arm != config.compare.baseline)
    keep_comparison(name, config.compare.model_copy(update={"family": family}), done)


def keep_comparison(name: str, plan: CompareConfig, runs: Sequence[Run]) -> None:
    """Compare the seeds of some runs by the plan of all, and keep the result and its rows beside this file."""
    measured: dict[tuple[str, str], list[Measured]] = {}
    admission: dict[str, list[float | None]] = {}
    for made in runs:
        data, stages = RunData(made), json.loads(made.path("metrics.json").read_text(encoding="utf-8"))["stages"]
        for arm in ("sft", *_arms(made.config)):
            for checkpoint in ("best",) if arm in ("sft", RERANK) else ("best", "final"):
                found = read_measured(data, evaluation_folder(made, arm, checkpoint))
                measured.setdefault((arm, checkpoint), []).append(found)
            admission.setdefault(arm, []).append(stages.get(arm, {}).get("admission"))
    seeds = [made.config.seed for made in runs]
    content = {
        "name": name,
        "seeds": seeds,
        "users": len(pl.concat([entry.users[USER_ID] for entry in measured["sft", "best"]]).unique()),
        "plan": plan.model_dump(mode="json"),
        "arms": {arm: {"admission": values} for arm, values in admission.items() if arm != "sft"},
        "rows": compare(measured, seeds, plan),
        "pairs": compare_pairs(measured, plan),
    }
    text = json.dumps(with_hash(content), indent=1, allow_nan=False)
    write_file(HERE / f"gate-{name}.comparison.json", text + "\n")
    rows = [
        {"dataset": name, "arm": arm, "seed": seed, "checkpoint": checkpoint, "split": split, "metrics": metrics}
        for (arm, checkpoint), entries in measured.items()
        for seed, entry in zip(seeds, entries, strict=True)
        for split, metrics in (("validation", dict(entry.validation)), ("test", dict(entry.test)))
    ]
    write_file(HERE / f"gate-{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def _comparison(config: Config, data: Path, directory: Path, seeds: list[int]) -> Comparison:
    return Comparison(directory, config, data, objectives=_arms(config), seeds=seeds, console=StderrConsole())


def _arms(config: Config) -> list[str]:
    return [arm.name for arm in config.train.arms] + [RERANK]


def _thresholds(plan: Mapping[str, Any], name: str) -> dict[str, dict[str, float]]:
    """What the rule chose for each kind of rollouts."""
    rows = [row for row in read_rows(HERE / f"admission-{name}.jsonl") if row["chosen"]]
    if len(rows) < len(plan["rollouts"]):
        raise UserError(f"{name}: its thresholds are not chosen yet; the command without --compare does")
    return {row["rollouts"]: {"tau": row["tau"], "rho": row["rho"]} for row in rows}


def _choose_thresholds(plan: Mapping[str, Any], name: str, run: Run) -> None:
    """Measure the admission of every pair of thresholds, and mark the one that the rule takes; measured once."""
    results = HERE / f"admission-{name}.jsonl"
    if any(row["plan"] != _plan_hash(plan) for row in read_rows(results)):
        raise UserError(f"{results}: holds rows of another plan; move them away to measure anew")
    for rollouts, options in plan["rollouts"].items():
        if rollouts in {row["rollouts"] for row in read_rows(results) if row["chosen"]}:
            continue
        with locked(run):
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


def _plan_hash(plan: Mapping[str, Any]) -> str:
    """What the thresholds of a set follow from."""
    return hash_json({key: plan[key] for key in ("rollouts", "thresholds")})[:12]


def main() -> None:
    """Carry out the trial of the sets that are asked for, or compare what is done of it."""
    parser = fair.set_parser(__doc__)
    parser.add_argument("--compare", action="store_true", help="compare the seeds that are done; train nothing")
    given = parser.parse_args()
    for name in given.sets:
        (compare_done if given.compare else carry_out)(name, given.data, given.out)


if __name__ == "__main__":
    run(main)
