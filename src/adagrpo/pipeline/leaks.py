"""Asks a reward that was made elsewhere whether it has seen the held-out items; see `adagrpo.diagnosis.leaks`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from adagrpo.config.reward import FeatureOptions
from adagrpo.data.sequences import pad
from adagrpo.diagnosis.leaks import Answers, answers, leak_signs, with_last_fitted
from adagrpo.evaluation.predictions import sample_cases
from adagrpo.pipeline.factories import Models
from adagrpo.rewards.protocol import Reward
from adagrpo.trainer.lambdarank import NegativeSampler

__all__ = ["leak_files", "suspect"]

MOST_CASES, DRAWN = 2000, 50


def leak_files(models: Models) -> list[Path]:
    """The files that `suspect` reads beside those of the data; none where it asks nothing."""
    return [models.run.path("ranker", "best", "model.safetensors")] if models.config.reward.is_made_elsewhere else []


def suspect(models: Models, reward: Reward | None = None) -> dict[str, Any] | None:
    """Look for signs that a reward has seen the held-out items of validation.

    Args:
        models: of a run whose sequential ranker is fitted.
        reward: None is that of the configuration.

    Returns:
        See `adagrpo.diagnosis.leak_signs`; None of a reward that the run itself makes of training alone, and where too
        few users have two training items.
    """
    if reward is None and not models.config.reward.is_made_elsewhere:
        return None
    data, seed, longest = models.data, models.config.seed, models.config.max_history
    questions = with_last_fitted(data.training, sample_cases(data.cases("validation"), MOST_CASES, seed))
    if len(questions.fitted) == 0:
        return None
    held_out, fitted = questions
    before = pad(fitted.histories, np.arange(len(fitted)), longest)
    drawn = NegativeSampler(data.training, data.num_items, seed).draw(
        fitted.users.astype(np.int64),
        before.items.numpy(),
        before.lengths.numpy(),
        np.column_stack([held_out.targets, fitted.targets]).astype(np.int64),
        DRAWN,
    )

    def asked(ranker: Reward) -> Answers:
        size = models.config.evaluation.batch_size
        return answers(ranker, questions, drawn, max_history=longest, batch_size=size, device=data.device)

    references: dict[str, Reward] = {
        "item-kNN": models.reward_of(FeatureOptions(name="knn_history")),
        "what followed the last item": models.reward_of(FeatureOptions(name="next_last")),
        "sequential ranker": models.ranker(models.run.path("ranker", "best")),
    }
    own = models.reward() if reward is None else reward
    return leak_signs(asked(own), {name: asked(ranker) for name, ranker in references.items()})
