"""Asks a reward that was made elsewhere whether it has seen the held-out items; see `adagrpo.diagnosis.leaks`."""

from __future__ import annotations

from functools import cached_property
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

MOST_CASES, DRAWN = 2000, 50


def leak_files(models: Models) -> list[Path]:
    """The files that `suspect` reads beside those of the data; none where it asks nothing."""
    return [models.run.path("ranker", "best", "model.safetensors")] if models.config.reward.is_made_elsewhere else []


class LeakCheck:
    """The questions to a run's users, and what rankers of training alone answer to them."""

    def __init__(self, models: Models) -> None:
        """Draw the questions.

        Args:
            models: of a run whose sequential ranker is fitted.
        """
        self.models, data, seed = models, models.data, models.config.seed
        cases = sample_cases(data.cases("validation"), MOST_CASES, seed)
        self.questions = with_last_fitted(data.training, cases)
        held_out, fitted = self.questions
        before = pad(fitted.histories, np.arange(len(fitted)), models.config.max_history)
        self.drawn = NegativeSampler(data.training, data.num_items, seed).draw(
            fitted.users.astype(np.int64),
            before.items.numpy(),
            before.lengths.numpy(),
            np.column_stack([held_out.targets, fitted.targets]).astype(np.int64),
            DRAWN,
        )

    @cached_property
    def references(self) -> dict[str, Answers]:
        """The answers of rankers of training alone, by name."""
        models = self.models
        return {
            "item-kNN": self._asked(models.reward_of(FeatureOptions(name="knn_history"))),
            "what followed the last item": self._asked(models.reward_of(FeatureOptions(name="next_last"))),
            "sequential ranker": self._asked(models.ranker(models.run.path("ranker", "best"))),
        }

    def signs(self, reward: Reward) -> dict[str, Any] | None:
        """Return what `adagrpo.diagnosis.leaks.leak_signs` says; None where no user has two training items."""
        return leak_signs(self._asked(reward), self.references) if len(self.drawn) else None

    def _asked(self, ranker: Reward) -> Answers:
        return answers(
            ranker,
            self.questions,
            self.drawn,
            max_history=self.models.config.max_history,
            batch_size=self.models.config.evaluation.batch_size,
            device=self.models.data.device,
        )


def suspect(models: Models) -> dict[str, Any] | None:
    """Look for signs that the reward of a run has seen the held-out items of validation.

    Args:
        models: of a run whose sequential ranker is fitted.

    Returns:
        See `LeakCheck.signs`; None also of a reward that the run itself makes of training alone.
    """
    return LeakCheck(models).signs(models.reward()) if models.config.reward.is_made_elsewhere else None
