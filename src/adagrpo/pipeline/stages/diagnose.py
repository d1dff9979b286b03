"""The stage `diagnose`: does re-ranking the sft policy by this reward help on validation cases?

Validation selected the checkpoints of policy and ranker, which flatters both. Simulated truth is taken just before the
purchase.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from adagrpo.diagnosis import Lists, Observations, diagnose
from adagrpo.diagnosis.assessment import Utility
from adagrpo.evaluation.predictions import batches
from adagrpo.objective import target_nll
from adagrpo.pipeline.diagnosed import diagnosed_models
from adagrpo.pipeline.directory import RunDirectory, model_of
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
    """Declare the diagnosis of a run's reward."""
    data = RunData(run)
    models = Models(data)
    policy = run.path("sft", "best")
    reads = [*data.training_files, *data.catalog_files]
    reads += dict.fromkeys([model_of("sft"), *models.reward_files, *leak_files(models)])

    def build(work: Path) -> None:
        if run.config.data.split.baskets:
            run.console.note("note: a diagnosis asks for one item of each basket, drawn; `decide` asks for all of it")
        observed = observe(
            models,
            models.policy(policy),
            models.reward(),
            data.cases("validation"),
            utility=data.utility_at(data.cases("validation")),
        )
        leak = suspect(models)
        result = diagnose(observed, leak, exposure_power=data.exposure_power, seed=run.config.seed)
        result["of"] = diagnosed_models(models)
        write_json(work / "diagnose.json", result, allow_nan=False)

    return Declaration(
        build,
        reads=[*reads, *data.shown_files, *data.truth_files],
        files=("diagnose.json",),
        settings=(*DECODING, "decide", "ranker", "reward", "seed"),
        but=("ranker.lambdarank", *NOT_FITTED),
        version=8,
    )


@torch.no_grad()
def observe(
    models: Models,
    policy: Policy[Any, Any],
    reward: Reward,
    cases: Cases,
    *,
    utility: Utility | None = None,
) -> Observations:
    """Return the beams scored by the reward, and the policy's NLL of the logged items."""
    data, config = models.data, models.config
    predictions = models.predict(policy, cases, reward, progress(data.run, "diagnose beam"))
    assert predictions.rewards is not None, "predicted with a reward"

    policy.eval()
    nll = np.empty(len(cases))
    for rows, histories in batches(cases, config.evaluation.batch_size, config.max_history, data.device):
        targets = torch.from_numpy(cases.targets[rows].astype(np.int64)).to(data.device)
        codes = data.catalog.codes[targets].unsqueeze(1)
        nll[rows] = target_nll(policy.score(policy.encode(histories), codes).squeeze(1)).cpu().numpy()
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
        nll=nll,
        exposures=data.times_shown,
        utility=utility,
    )
