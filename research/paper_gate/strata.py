"""Beams re-ranked by the reward, over all validation cases and by strata of the gate's diagnostics.

    python -m research.paper_gate.strata --data DIR --runs runs/decisions --out runs/strata --sets amazon-beauty

The paper's tables, with controls. `--runs` holds runs of `research.paper_gate.trial` or of `research.decisions.sets`,
of which the starting policy and the trees of seed 1 are read and nothing is written. A group is the policy's beam of 32
over the catalogue; HR@10 and NDCG@10 are of the group in the policy's order and in the reward's. Difficulty is the
log-probability of the logged item, in fifths of all cases and in fifths of those whose beam holds the item, the only
ones in which an order matters.

    shuffled   rewards permuted within each group, in strata that they make themselves: what strata alone produce, since
               they read the score of the very item whose place is then measured; `suppressed` does not read it
    fitted     trees that were fitted on half of the users (kept in `--out`), among these users
    held out   the same trees among the other users

Rows go to `strata-<set>.jsonl`; those of trees that were fitted on all users have `users` all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from adagrpo.config import ObjectiveConfig
from adagrpo.console import StderrConsole
from adagrpo.diagnosis.strata import rows_of
from adagrpo.errors import UserError
from adagrpo.groups.cases import case_groups, evidence_of
from adagrpo.groups.score import ScoredGroups
from adagrpo.objective import Evidence
from adagrpo.pipeline import Run
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.make import make
from adagrpo.pipeline.stages.fit_ranker import lambdarank
from adagrpo.report.page import read_rows
from research.command import run
from research.fair_trial import tune as fair
from research.paper_gate.admission import admission_rows, chosen_thresholds, training_evidence
from research.rows import add_row

__all__ = ["measure"]

HERE = Path(__file__).parent
SEED = 1
HALF = 0.5  # share of the users that the trees of the control are fitted on


def measure(name: str, data: Path, runs: Path, out: Path) -> None:
    """The rows of one set that are not there yet.

    Args:
        name: of the set.
        data: the folder of all sets.
        runs: of the trial or of the decisions.
        out: for the trees of half of the users.
    """
    results = HERE / f"strata-{name}.jsonl"
    known = {row["users"] for row in read_rows(results)}
    plan = yaml.safe_load((HERE / "plan.yaml").read_text(encoding="utf-8"))
    fair_plan = fair.read_plan(name)
    folder, source = fair.folder_of(fair_plan, name, data), _run_in(runs, name)
    whole, half = (
        Run(
            directory,
            fair.recipe_of(fair_plan, name, f"seed={SEED}", f"ranker.user_share={share}"),
            folder,
            StderrConsole(),
            source=read,
        )
        for directory, share, read in ((source, 1.0, None), (out / f"{name}-{SEED}", HALF, source))
    )
    thresholds = _thresholds(name, plan, whole)
    if "all" not in known:
        groups, own, shuffled = _groups(whole, plan)
        _add(
            results,
            name,
            thresholds,
            rows_of(groups, own, shuffled, thresholds, np.ones(len(groups.targets), np.bool_)),
        )
    if "held out" not in known:
        make(half, "ranker/lambdarank", lambdarank(half))
        groups, own, shuffled = _groups(half, plan)
        withheld = RunData(half).withheld[RunData(half).cases("validation").users]
        for users, among in {"fitted": ~withheld, "held out": withheld}.items():
            _add(results, name, thresholds, rows_of(groups, own, shuffled, thresholds, among), users)


def _run_in(runs: Path, name: str) -> Path:
    """The run of a set, as the trial or the decisions call it."""
    found = [path for path in (runs / name / f"seed-{SEED}", runs / f"{name}-{SEED}") if (path / "sft").is_dir()]
    if not found:
        raise UserError(f"{runs}: no run of {name}; research.decisions.sets makes one")
    return found[0]


def _thresholds(name: str, plan: Mapping[str, Any], source: Run) -> dict[str, float]:
    """What the trial chose for beams or, of a set that it has not reached, what its rule chooses."""
    chosen = [r for r in read_rows(HERE / f"admission-{name}.jsonl") if r["chosen"] and r["rollouts"] == "beam"]
    if chosen:
        return {key: chosen[0][key] for key in ("tau", "rho")}
    earlier = [*read_rows(HERE / f"strata-{name}.jsonl")]
    if earlier:
        return {key: earlier[0][key] for key in ("tau", "rho")}
    evidence = training_evidence(source, ObjectiveConfig(**plan["rollouts"]["beam"]), plan["thresholds"]["samples"])
    return chosen_thresholds(admission_rows(*evidence, plan["thresholds"]), plan["thresholds"])


def _groups(made: Run, plan: Mapping[str, Any]) -> tuple[ScoredGroups, Evidence, Evidence]:
    """A beam a validation case, and its evidence by the rewards and by shuffled ones."""
    config, models = made.config, Models(RunData(made))
    options = ObjectiveConfig(**plan["rollouts"]["beam"] | {"exclude_history": config.evaluation.exclude_history})
    groups = case_groups(
        models.policy(made.path("sft", "best")),
        models.data.catalog,
        models.reward(),
        models.data.cases("validation"),
        options,
        batch_size=256,
        max_history=config.max_history,
        seed=SEED,
        source="rollouts",
    )
    return groups, evidence_of(groups, options), evidence_of(groups, options, shuffled=True)


def _add(
    results: Path, name: str, thresholds: Mapping[str, float], rows: list[dict[str, Any]], users: str = "all"
) -> None:
    for row in rows:
        about = {"dataset": name, "seed": SEED, "split": "validation", "users": users}
        add_row(results, about | dict(thresholds) | row)


def main() -> None:
    """Measure the sets that are asked for."""
    parser = fair.set_parser(__doc__)
    parser.add_argument("--runs", type=Path, required=True, help="the runs whose policies and trees are read")
    given = parser.parse_args()
    for name in given.sets:
        measure(name, given.data, given.runs, given.out)


if __name__ == "__main__":
    run(main)
