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
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from adagrpo.config import ObjectiveConfig
from adagrpo.console import StderrConsole
from adagrpo.errors import UserError
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
from research.paper_gate.case_groups import case_groups, evidence_of
from research.rows import add_row

__all__ = ["gains", "rows_of", "strata_of"]

HERE = Path(__file__).parent
SEED = 1
HALF = 0.5  # share of the users that the trees of the control are fitted on
TOP = 10
QUANTILES = 5


def gains(rank: Tensor) -> dict[str, NDArray[np.float64]]:
    """HR@10 and NDCG@10 of each case.

    Args:
        rank: (N,) place of the logged item in its list, from 0; infinite where the list does not hold it.

    Example:
        >>> gains(torch.tensor([0.0, 9.0, 10.0, torch.inf]))["hr@10"]
        array([1., 1., 0., 0.])
    """
    hit = rank < TOP
    return {"hr@10": hit.double().numpy(), "ndcg@10": (hit / (rank + 2).log2()).double().numpy()}


def places(groups: ScoredGroups, scores: Tensor) -> Tensor:
    """Where each logged item stands in its group by some scores.

    Args:
        groups: `N` groups of distinct rollouts.
        scores: (N, G) larger is better, not read where a rollout names no item.

    Returns:
        (N,) places from 0, a tie counts one half; infinite where the group does not hold the item.
    """
    mine = groups.rollouts.items == groups.targets.unsqueeze(1)
    own = scores.masked_fill(~mine, -torch.inf).amax(1, keepdim=True)
    usable = scores.masked_fill(groups.rollouts.items < 0, -torch.inf)
    above = ((usable > own).double() + 0.5 * ((usable == own) & ~mine).double()).sum(1)
    return above.masked_fill(~mine.any(1), torch.inf)


def strata_of(evidence: Evidence, thresholds: Mapping[str, float]) -> dict[str, NDArray[np.bool_]]:
    """The strata of the gate's tests, and those of difficulty alone.

    Args:
        evidence: of `N` groups.
        thresholds: `tau` and `rho`.
    """
    hard = evidence.above_policy >= thresholds["tau"]
    known = evidence.above_reward < thresholds["tau"]
    absent = evidence.negatives_above.isnan()
    suppressed = ((evidence.negatives_above >= thresholds["rho"]) | absent).all(1) & ~absent.all(1)
    masks = {
        "all": torch.ones_like(hard),
        "hard": hard,
        "not hard": ~hard,
        "known": known,
        "not known": ~known,
        "suppressed": suppressed,
        "not suppressed": ~suppressed,
        "hard, known": hard & known,
        "hard, not known": hard & ~known,
        "hard, suppressed": hard & suppressed,
        "hard, not suppressed": hard & ~suppressed,
        "admitted": hard & known & suppressed,
        "not admitted": ~(hard & known & suppressed),
    }
    return {name: mask.numpy() for name, mask in masks.items()}


def rows_of(
    groups: ScoredGroups,
    objective: ObjectiveConfig,
    thresholds: Mapping[str, float],
    among: NDArray[np.bool_],  # (N,)
) -> list[dict[str, Any]]:
    """A row for each stratum: the orders of policy, reward and shuffled reward, the last in strata of its own.

    Args:
        groups: one a case, with negatives of other cases' rollouts.
        objective: what they were drawn by.
        thresholds: `tau` and `rho`.
        among: (N,) bool, the cases that are measured.
    """
    policy = gains(places(groups, groups.rollouts.log_probs.double().sum(2)))
    by_reward = gains(places(groups, groups.rewards.rollouts.double()))
    by_chance = gains(places(groups, groups.shuffled_rewards.rollouts.double()))
    own, fake = (evidence_of(groups, objective, shuffled=shuffled) for shuffled in (False, True))
    strata, chance_strata = strata_of(own, thresholds), strata_of(fake, thresholds)
    assert groups.target_log_probs is not None, "cases are drawn with the scores of their logged items"
    log_prob = groups.target_log_probs.double().sum(1).numpy()
    held = (groups.rollouts.items == groups.targets.unsqueeze(1)).any(1).numpy()
    fifths = {f"difficulty, {name}": mask for name, mask in fifths_of(log_prob, among).items()}
    fifths |= {f"in the beam, {name}": mask & held for name, mask in fifths_of(log_prob, among & held).items()}
    rows = []
    for name, mask in (strata | fifths).items():
        kept = mask & among
        row: dict[str, Any] = {"stratum": name, "cases": int(kept.sum())}
        row |= _means("policy", policy, kept) | _means("reward", by_reward, kept)
        row |= _difference("gain", by_reward, policy, kept)
        other = chance_strata.get(name, mask) & among
        row |= {"shuffled_cases": int(other.sum())} | _difference("shuffled_gain", by_chance, policy, other)
        rows.append(row)
    return rows


def fifths_of(log_prob: NDArray[np.float64], among: NDArray[np.bool_]) -> dict[str, NDArray[np.bool_]]:
    """Fifths of difficulty, the first the easiest.

    Args:
        log_prob: (N,) of the logged items.
        among: (N,) bool, the cases that are divided.

    Example:
        >>> masks = fifths_of(np.array([-5.0, -1.0, -2.0, -3.0, -4.0]), np.ones(5, bool))
        >>> masks["fifth 1"].tolist(), masks["fifth 5"].tolist()
        ([False, True, False, False, False], [True, False, False, False, False])
    """
    edges = np.quantile(log_prob[among], np.linspace(0, 1, QUANTILES + 1)[1:-1])
    fifth = QUANTILES - 1 - np.searchsorted(edges, log_prob, side="right")  # 0 is the easiest
    return {f"fifth {index + 1}": fifth == index for index in range(QUANTILES)}


def _means(name: str, values: Mapping[str, NDArray[np.float64]], mask: NDArray[np.bool_]) -> dict[str, Any]:
    return {f"{name}_{key}": float(value[mask].mean()) if mask.any() else None for key, value in values.items()}


def _difference(
    name: str,
    first: Mapping[str, NDArray[np.float64]],
    second: Mapping[str, NDArray[np.float64]],
    mask: NDArray[np.bool_],
) -> dict[str, Any]:
    """The mean difference of a case, and half of its 95 % interval; one case a user."""
    found: dict[str, Any] = {}
    for key in first:
        values = (first[key] - second[key])[mask]
        enough = len(values) > 1
        half = float(1.96 * values.std(ddof=1) / np.sqrt(len(values))) if enough else None
        found |= {f"{name}_{key}": float(values.mean()) if len(values) else None, f"{name}_{key}_half": half}
    return found


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
        groups, options = _groups(whole, plan)
        _add(results, name, thresholds, rows_of(groups, options, thresholds, np.ones(len(groups.targets), np.bool_)))
    if "held out" not in known:
        make(half, "ranker/lambdarank", lambdarank(half))
        groups, options = _groups(half, plan)
        withheld = RunData(half).withheld[RunData(half).cases("validation").users]
        for users, among in {"fitted": ~withheld, "held out": withheld}.items():
            _add(results, name, thresholds, rows_of(groups, options, thresholds, among), users)


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


def _groups(made: Run, plan: Mapping[str, Any]) -> tuple[ScoredGroups, ObjectiveConfig]:
    """A beam a validation case, and what drew it."""
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
    return groups, options


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
