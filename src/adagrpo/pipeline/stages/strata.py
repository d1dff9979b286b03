"""The stage `strata`: where re-ranking the sft policy's beams by the reward helps, by what the gate tests.

See `adagrpo.diagnosis.strata`. A group is a constrained beam of 32 over the catalogue per validation case, histories
masked as the run evaluates. The gate's thresholds are, in this order: those found by training for an up-to-date arm;
found here by `admit`; those of the recipe. Arms whose rollouts are beams come first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from adagrpo.config import Config, ObjectiveConfig
from adagrpo.diagnosis.strata import rows_of
from adagrpo.groups.cases import case_groups, evidence_of
from adagrpo.objective import GATES, Evidence, admission_grid, choose_thresholds
from adagrpo.pipeline.directory import RunDirectory, model_of
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.json_files import read_json, write_json
from adagrpo.pipeline.stage import Declaration
from adagrpo.pipeline.stages.diagnose import diagnosed_models
from adagrpo.pipeline.stages.fitting import DECODING, NOT_FITTED, progress
from adagrpo.pipeline.staleness import finished_arms

GATE = "adagrpo"
BEAM, BATCH = 32, 256
LEAST = 50  # cases of a stratum with an interval
FOUND = "thresholds.json"  # what training found by `admit`


def gated_arms(config: Config) -> dict[str, ObjectiveConfig]:
    """Return `objective` of each arm that the paper's gate tests, by name; beams first."""
    arms = {
        arm.name: objective
        for arm in config.train.arms
        if arm.admits is not None and GATES[arm.admits].reads_tests
        if (objective := arm.resolved_objective(config.objective)).tested_by(arm.admits) == GATE
    }
    return dict(sorted(arms.items(), key=lambda one: one[1].rollout != "beam"))


def strata(run: RunDirectory) -> Declaration:
    """Declare the strata of a run's reward."""
    data = RunData(run)
    models, arms = Models(data), gated_arms(run.config)
    objective = next(iter(arms.values()), run.config.objective)
    trained = finished_arms(run) if any(run.find("train", arm, FOUND) for arm in arms) else []
    found = next((f"train/{arm}" for arm in arms if arm in trained and run.find("train", arm, FOUND)), None)
    reads = [*data.training_files, *data.catalog_files, model_of("sft"), *models.reward_files]

    def build(work: Path) -> None:
        cases = data.cases("validation")
        drawn_by = objective.model_copy(
            update={
                "rollout": "beam",
                "num_generations": max(2, min(BEAM, int(data.catalog.listed.sum()))),
                "constrained": True,
                "exclude_history": run.config.evaluation.exclude_history,
                "inject_target": False,
            }
        )
        groups = case_groups(
            models.policy(run.path("sft", "best")),
            data.catalog,
            models.reward(),
            cases,
            drawn_by,
            batch_size=BATCH,
            max_history=run.config.max_history,
            seed=run.config.seed,
            source=GATES[GATE].negatives,
            report=progress(run, "strata beam"),
        )
        own, shuffled = (evidence_of(groups, drawn_by, shuffled=of) for of in (False, True))
        options, origin = objective.of_gate(GATE), "the recipe"
        options.pop("admit", None)
        admit = getattr(getattr(objective, GATE), "admit", None)
        if found is not None:
            known = read_json(run.path(found, FOUND))
            options |= {key: known[key] for key in ("tau", "rho")}
            origin = found
        elif admit is not None:
            options |= _by_admission(own, shuffled, admit, options)
            origin = f"admission of {admit:g} on these cases"
        rows = rows_of(groups, own, shuffled, options, np.ones(len(cases), np.bool_), least=LEAST)
        settings = {
            "cases": len(cases),
            "beam_width": drawn_by.num_generations,
            "exclude_history": drawn_by.exclude_history,
            "thresholds_from": origin,
            **options,
            "least_cases": LEAST,
        }
        content = {"settings": settings, "rows": rows, "of": diagnosed_models(models)}
        write_json(work / "strata.json", content, allow_nan=False)

    return Declaration(
        build,
        reads=[*reads, *([] if found is None else [f"{found}:{FOUND}"])],
        files=("strata.json",),
        settings=(*DECODING, "objective.adagrpo", "reward", "seed"),
        but=NOT_FITTED,
        also={"objective": objective.model_dump(mode="json", include={GATE, "negatives", "reward_floor"})},
    )


def _by_admission(own: Evidence, shuffled: Evidence, admit: float, options: dict[str, Any]) -> dict[str, float]:
    others = {key: value for key, value in options.items() if key not in ("tau", "rho")}
    chosen = choose_thresholds(admission_grid(own, shuffled, **others), admit, len(own.degenerate))
    return {"tau": chosen.tau, "rho": chosen.rho}
