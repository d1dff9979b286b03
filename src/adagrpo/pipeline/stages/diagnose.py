"""The stage `diagnose`: should this reward be used here? Validation cases alone, and the sft policy as it is.

Test targets are not read. Validation targets were not fitted on, but the checkpoints of policy and ranker were chosen
on them, which flatters both alike. The truth of a simulated marketplace is that of the moment before the purchase.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from adagrpo.diagnosis import Lists, Observations, case_groups, diagnose
from adagrpo.diagnosis.assessment import Utility
from adagrpo.groups.score import ScoredGroups
from adagrpo.pipeline.diagnosed import diagnosed_models
from adagrpo.pipeline.directory import RunDirectory
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.json_files import write_json
from adagrpo.pipeline.leak_check import leak_files, suspect
from adagrpo.pipeline.stage import Declaration
from adagrpo.pipeline.stages.fitting import DECODING, NOT_FITTED, progress
from adagrpo.policies import Policy
from adagrpo.rewards.protocol import Reward
from adagrpo.types import Cases


def diagnosis(run: RunDirectory) -> Declaration:
    """The diagnosis of the reward of a run."""
    data = RunData(run)
    models = Models(data)
    policy = run.path("sft", "best")
    inputs = [*data.training_files, *data.catalog_files]
    inputs += dict.fromkeys([policy / "model.safetensors", *models.reward_files, *leak_files(models)])

    def build(work: Path) -> None:
        observed = observe(
            models,
            models.policy(policy),
            models.reward(),
            data.cases("validation"),
            utility=data.utility_at(data.cases("validation")),
        )
        leak = suspect(models)
        power = run.config.decide.exposure_power
        result = diagnose(observed, run.config.objective, leak, exposure_power=power, seed=run.config.seed)
        result["of"] = diagnosed_models(models)
        write_json(work / "diagnose.json", result, allow_nan=False)

    return Declaration(
        build,
        inputs=[*inputs, *data.shown_files, *data.truth_files],
        files=("diagnose.json",),
        settings=(*DECODING, "decide", "objective", "ranker", "reward", "seed"),
        but=("ranker.lambdarank", *NOT_FITTED),
        schema=7,
    )


def observe(
    models: Models,
    policy: Policy[Any, Any],
    reward: Reward,
    cases: Cases,
    *,
    utility: Utility | None = None,
) -> Observations:
    """Beams and groups of the cases, scored by the reward."""
    data, config = models.data, models.config
    predictions = models.predict(policy, cases, reward, progress(data.run, "diagnose beam"))
    assert predictions.rewards is not None, "predicted with a reward"

    def groups(kind: str) -> ScoredGroups:
        return case_groups(
            policy,
            data.catalog,
            reward,
            cases,
            config.objective.model_copy(update={"rollout": kind}),
            batch_size=config.evaluation.batch_size,
            max_history=config.max_history,
            seed=config.seed,
            report=progress(data.run, f"diagnose {kind} groups"),
        )

    lists = Lists(
        predictions.items,
        predictions.scores.astype(np.float64),
        predictions.rewards.astype(np.float64),
        cases.targets.astype(np.int64),
    )
    return Observations(
        lists=lists,
        history_lengths=cases.histories.lengths,
        training_counts=data.training.counts(data.num_items),
        sampled=groups("sample"),
        beam=groups("beam"),
        exposures=data.times_shown,
        utility=utility,
    )
