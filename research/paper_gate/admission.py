"""How much the paper's gate admits at a starting policy, by its thresholds, and which of its tests decide.

Groups are those of the first steps of post-training. Each is drawn and scored once and judged at every pair of
thresholds, by the rewards as they are and by the same rewards shuffled within each group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from adagrpo.config import ObjectiveConfig
from adagrpo.objective import Evidence
from adagrpo.objective.admission import OFF, TESTS, admitted_share
from adagrpo.pipeline import Run
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.trainer.thresholds import starting_evidence

__all__ = ["OFF", "TESTS", "admission_rows", "chosen_thresholds", "training_evidence"]


def training_evidence(run: Run, objective: ObjectiveConfig, samples: int) -> tuple[Evidence, Evidence]:
    """Evidence of training groups of a run, with a starting policy and a reward; see `starting_evidence`."""
    models = Models(RunData(run))
    schedule = replace(models.schedule(run.config.train.fit), rl_split=run.config.train.rl_split)
    policy = models.policy(run.path("sft", "best"))
    return starting_evidence(policy, models.data.catalog, models.reward(), schedule, objective, samples)


def admission_rows(own: Evidence, shuffled: Evidence, plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The share of groups that every pair of thresholds admits, and each test by itself and left out.

    Args:
        own: evidence by the rewards as they are.
        shuffled: by shuffled rewards.
        plan: `thresholds` of plan.yaml.
    """
    rows = []
    for tau, rho in product(plan["tau"], plan["rho"]):
        set_at = {"tau": tau, "tau_reward": tau, "rho": rho}
        row: dict[str, Any] = {"tau": tau, "rho": rho, "groups": len(own.degenerate)}
        kinds = {"gate": set_at}
        kinds |= {f"{test}_alone": OFF | {key: set_at[key]} for test, key in TESTS.items()}
        kinds |= {f"without_{test}": set_at | {key: OFF[key]} for test, key in TESTS.items()}
        for name, thresholds in kinds.items():
            row[name] = admitted_share(own, thresholds)
            row[f"{name}_shuffled"] = admitted_share(shuffled, thresholds)
        rows.append(row)
    return rows


def chosen_thresholds(rows: Sequence[Mapping[str, Any]], plan: Mapping[str, Any]) -> dict[str, float]:
    """The pair that the plan's rule takes.

    Example:
        >>> rows = [{"tau": 0.2, "rho": rho, "gate": g, "gate_shuffled": s} for rho, g, s in
        ...         ((0.2, 0.3, 0.1), (0.3, 0.1, 0.04), (0.5, 0.06, 0.03))]
        >>> chosen_thresholds(rows, {"admission": [0.05, 0.15]})
        {'tau': 0.2, 'rho': 0.3}
    """
    low, high = plan["admission"]
    within = [row for row in rows if low <= row["gate"] <= high]
    if within:
        best = max(within, key=lambda row: (row["gate"] / max(row["gate_shuffled"], 1e-9), -row["tau"], -row["rho"]))
    else:
        best = min(rows, key=lambda row: (abs(row["gate"] - (low + high) / 2), row["tau"], row["rho"]))
    return {"tau": best["tau"], "rho": best["rho"]}
