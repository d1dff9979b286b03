"""Test whether an external reward has seen held-out items; see `adagrpo.diagnosis.leaks`."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from adagrpo.config.reward import FeatureOptions
from adagrpo.data.sequences import pad
from adagrpo.diagnosis.leaks import Answers, answers, leak_signs, with_last_fitted
from adagrpo.evaluation.predictions import sample_cases
from adagrpo.pipeline.factories import RANKER, Models
from adagrpo.pipeline.list_makers import reward_title, rewards_alone
from adagrpo.pipeline.stage import Read
from adagrpo.rewards.protocol import Reward
from adagrpo.trainer.lambdarank import NegativeSampler

MOST_CASES, DRAWN = 2000, 50


def leak_files(models: Models) -> list[Read]:
    """Return what `suspect` reads besides the data; empty if no reward is external."""
    return [RANKER] if models.config.reward.is_made_elsewhere else []


class LeakCheck:
    """Questions about a run's users, answered by rewards and reference rankers."""

    def __init__(self, models: Models) -> None:
        """Draw the questions."""
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
        """Answers of rankers fitted on training data alone, by name."""
        models = self.models
        return {
            "item-kNN": self._asked(models.reward_of(FeatureOptions(name="knn_history"))),
            "what followed the last item": self._asked(models.reward_of(FeatureOptions(name="next_last"))),
            "sequential ranker": self._asked(models.ranker(models.run.path("ranker", "best"))),
        }

    def signs(self, reward: Reward) -> dict[str, Any] | None:
        """Return `leak_signs`; None if no user has two training items."""
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


def suspects(models: Models) -> dict[str, dict[str, Any]]:
    """Return each external reward's `LeakCheck.signs`, unless None, by name as in `rewards_alone`."""
    asked = {name: part for name, part in rewards_alone(models.config.reward).items() if part.is_made_elsewhere}
    check = LeakCheck(models) if asked else None
    found = {name: check.signs(models.reward_of(part)) for name, part in asked.items()} if check is not None else {}
    return {name: signs for name, signs in found.items() if signs is not None}


def suspect(models: Models) -> dict[str, Any] | None:
    """Return the first leaking reward's signs, else the first reward's; None without any. `leaking` names all."""
    found = suspects(models)
    leaking = [name for name, signs in found.items() if signs["signs"]]
    first = next(iter([*leaking, *found]), None)
    if first is None:
        return None
    return found[first] | {"leaking": [reward_title(models.config.reward, name) for name in leaking]}
