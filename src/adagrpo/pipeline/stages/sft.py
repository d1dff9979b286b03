"""The stage `sft`: the starting policy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.run import Run
from adagrpo.pipeline.stages.fitting import DECODING, begin_fit, fit_model
from adagrpo.trainer import Supervised

__all__ = ["fit_sft"]


def fit_sft(run: Run) -> None:
    """The starting policy: NLL from scratch."""
    data, settings = RunData(run), run.config.sft
    models = Models(data)

    def build(work: Path) -> None:
        begin_fit(data, "sft")
        policy = models.policy()
        schedule = replace(models.schedule(settings), rl_split=run.config.train.rl_split)
        frozen_epochs = run.config.policy.lm.frozen_epochs if run.config.policy.lm else 0.0
        task = Supervised(
            policy,
            data.catalog.codes,
            schedule,
            steps=max(1, round(settings.epochs * schedule.steps_per_epoch)),
            validate=models.validator(policy, settings),
            waiting=policy.body_parameters,
            waiting_steps=round(frozen_epochs * schedule.steps_per_epoch),
        )
        fit_model(data, "sft", policy, task, settings, work, files=policy.checkpoint_files)

    reads = ("sft", *DECODING, "seed", "train.rl_split")
    inputs = [*data.training_files, *data.catalog_files, *data.language_model_files]
    run.stage("sft", reads=reads, schema=2, inputs=inputs, build=build, together=True)
