"""Beams re-ranked by the reward, over all validation cases and by strata of the gate's diagnostics.

    python -m research.paper_gate.strata --data DIR --out runs/paper-gate --sets lastfm

The paper's tables, with a control. Read are the starting policy and the reward of the trial's seed 1. A group is the
policy's beam of 32 over the catalogue; HR@10 and NDCG@10 are of the group in the policy's order and in the reward's.
Each stratum stands next to the same with the rewards of each group shuffled, in strata that the shuffled rewards make:
what the strata alone produce, since they read the score of the very item whose place is then measured. `suppressed`
does not read it. Rows go to `strata-<set>.jsonl`.
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
from adagrpo.diagnosis import case_groups, evidence_of
from adagrpo.groups.score import ScoredGroups
from adagrpo.objective import Evidence
from adagrpo.pipeline import Run
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.report import read_rows
from research.command import run
from research.fair_trial import tune as fair
from research.paper_gate.trial import HERE, trial_config
from research.rows import add_row

__all__ = ["gains", "rows_of", "strata_of"]

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


def rows_of(groups: ScoredGroups, objective: ObjectiveConfig, thresholds: Mapping[str, float]) -> list[dict[str, Any]]:
    """A row for each stratum: the orders of policy, reward and shuffled reward, the last in strata of its own.

    Args:
        groups: one a case, with negatives of other cases' rollouts.
        objective: what they were drawn by.
        thresholds: `tau` and `rho`.
    """
    policy = gains(places(groups, groups.rollouts.log_probs.double().sum(2)))
    by_reward = gains(places(groups, groups.rewards.rollouts.double()))
    by_chance = gains(places(groups, groups.shuffled_rewards.rollouts.double()))
    own, fake = (evidence_of(groups, objective, shuffled=shuffled) for shuffled in (False, True))
    strata, chance_strata = strata_of(own, thresholds), strata_of(fake, thresholds)
    assert groups.target_log_probs is not None, "cases are drawn with the scores of their logged items"
    log_prob = groups.target_log_probs.double().sum(1).numpy()
    edges = np.quantile(log_prob, np.linspace(0, 1, QUANTILES + 1)[1:-1])
    fifth = QUANTILES - 1 - np.searchsorted(edges, log_prob, side="right")  # 0 is the easiest
    quantiles = {f"difficulty, fifth {index + 1}": fifth == index for index in range(QUANTILES)}
    rows = []
    for name, mask in (strata | quantiles).items():
        row: dict[str, Any] = {"stratum": name, "cases": int(mask.sum())}
        row |= _means("policy", policy, mask) | _means("reward", by_reward, mask)
        row |= _difference("gain", by_reward, policy, mask)
        other = chance_strata.get(name, mask)
        row |= {"shuffled_cases": int(other.sum())} | _difference("shuffled_gain", by_chance, policy, other)
        rows.append(row)
    return rows


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


def measure(name: str, data: Path, out: Path) -> None:
    """The rows of one set, by thresholds that the trial's rule chose for beams."""
    results = HERE / f"strata-{name}.jsonl"
    if list(read_rows(results)):
        return
    plan = yaml.safe_load((HERE / "plan.yaml").read_text(encoding="utf-8"))
    fair_plan = fair.read_plan(name)
    chosen = {r["rollouts"]: r for r in read_rows(HERE / f"admission-{name}.jsonl") if r["chosen"]}["beam"]
    thresholds = {"tau": chosen["tau"], "rho": chosen["rho"]}
    config = trial_config(plan, fair_plan, name, dict.fromkeys(plan["rollouts"], thresholds))
    made = Run(
        out / name / "seed-1",
        config.model_copy(update={"seed": 1}),
        fair.folder_of(fair_plan, name, data),
        StderrConsole(),
    )
    with made.locked():
        for make in (Run.prepare, Run.tokenize, Run.sft, Run.ranker):
            make(made)
    objective = ObjectiveConfig(**plan["rollouts"]["beam"] | {"exclude_history": config.evaluation.exclude_history})
    models = Models(RunData(made))
    groups = case_groups(
        models.policy(made.path("sft", "best")),
        models.data.catalog,
        models.reward(),
        models.data.cases("validation"),
        objective,
        batch_size=256,
        max_history=config.max_history,
        seed=1,
        source="rollouts",
    )
    for row in rows_of(groups, objective, thresholds):
        add_row(results, {"dataset": name, "seed": 1, "split": "validation", **thresholds} | row)


def main() -> None:
    """Measure the sets that are asked for."""
    given = fair.set_parser(__doc__).parse_args()
    for name in given.sets:
        measure(name, given.data, given.out)


if __name__ == "__main__":
    run(main)
