"""The stage `sft`: the starting policy, trained here or elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from adagrpo.pipeline.directory import RunDirectory
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.stage import CHECKPOINTS, Declaration
from adagrpo.pipeline.stages.fitting import DECODING, NOT_FITTED, fit_model, measured_fit
from adagrpo.pipeline.stages.tokenize import VECTORS, start_from_vectors, vector_files
from adagrpo.trainer import Supervised


def sft(run: RunDirectory) -> Declaration:
    """Declare the starting policy: NLL from scratch, or a checkpoint (`policy.lm.trained`)."""
    data, settings = RunData(run), run.config.sft
    models = Models(data)

    def build(work: Path) -> None:
        policy = models.policy()
        items = getattr(policy, "items", None)  # if the policy has item vectors
        if isinstance(items, nn.Embedding) and run.begun is None:
            start_from_vectors(run, items, data.training)
        schedule = replace(models.schedule(settings), rl_split=run.config.train.rl_split)
        lm = run.config.policy.lm
        trained = lm is not None and lm.trained
        task = Supervised(
            policy,
            data.catalog.codes,
            schedule,
            steps=0 if trained else max(1, round(settings.epochs * schedule.steps_per_epoch)),
            validate=models.validator(policy, settings),
        )
        fit_model(data, "sft", policy, task, settings, work, files=policy.checkpoint_files)

    return Declaration(
        build,
        reads=[
            *(*data.training_files, *data.catalog_files, *data.language_model_files, *vector_files(run)),
            *measured_fit(run, "sft"),
        ],
        files=CHECKPOINTS,
        settings=("sft", *DECODING, "seed", "train.rl_split", *VECTORS),
        but=NOT_FITTED,
        version=4,
        together=True,
    )
