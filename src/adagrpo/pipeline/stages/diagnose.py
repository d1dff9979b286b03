"""The stage `diagnose`: does re-ranking the sft policy by this reward help on validation cases?

Validation selected the checkpoints of policy and ranker, which flatters both. Simulated truth is taken just before the
purchase. A diagnosis is valid for the policy and reward whose hashes it names.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adagrpo.config.reward import FeatureOptions
from adagrpo.data.sequences import pad
from adagrpo.diagnosis import Lists, Observations, diagnose
from adagrpo.diagnosis.assessment import Utility
from adagrpo.diagnosis.leaks import Answers, answers, leak_signs, with_last_fitted
from adagrpo.diagnosis.verdict import INVERTED, leak_reason
from adagrpo.errors import UserError
from adagrpo.evaluation.predictions import batches, sample_cases
from adagrpo.objective import nll as nll_of
from adagrpo.pipeline.directory import RunDirectory, find_content, folder_of, hash_of, model_of, trained_arms
from adagrpo.pipeline.factories import RANKER, Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.json_files import write_json
from adagrpo.pipeline.list_makers import reward_title, rewards_alone
from adagrpo.pipeline.rewards import describe_reward
from adagrpo.pipeline.stage import Declaration
from adagrpo.pipeline.stages.fitting import DECODING, NOT_FITTED, progress
from adagrpo.policies import Policy
from adagrpo.rewards.protocol import Reward
from adagrpo.trainer.lambdarank import NegativeSampler
from adagrpo.types import Cases


def diagnosis(run: RunDirectory) -> Declaration:
    """Declare the diagnosis of a run's reward."""
    data = RunData(run)
    models = Models(data)
    policy = run.path("sft", "best")
    reads = [*data.training_files, *data.catalog_files]
    leaks_read = [RANKER] if run.config.reward.is_made_elsewhere else []  # what `suspect` reads besides the data
    reads += dict.fromkeys([model_of("sft"), *models.reward_files, *leaks_read])

    def build(work: Path) -> None:
        if run.config.data.split.baskets:
            run.console.note("note: a diagnosis asks for one item of each basket, drawn; `decide` asks for all of it")
        cases = data.cases("validation")
        utility = data.utility_at(cases)
        observed = observe(models, models.policy(policy), models.reward(), cases, utility=utility)
        result = diagnose(observed, suspect(models), exposure_power=data.exposure_power, seed=run.config.seed)
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
        nll[rows] = nll_of(policy.score(policy.encode(histories), codes).squeeze(1)).cpu().numpy()
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


LEAKS = "it has probably seen the held-out items"
NO_GAIN = "no gain of re-ranking by it is shown"


def diagnosed_models(models: Models) -> dict[str, Any]:
    """Identify the policy and reward of a diagnosis, JSON-able."""
    return {"policy": hash_of(models.run, model_of("sft")), "reward": describe_reward(models)}


def is_diagnosed(run: RunDirectory, content: Mapping[str, Any]) -> bool:
    """Return whether diagnose.json is of the current policy and reward."""
    return bool(content.get("of") == diagnosed_models(Models(RunData(run))))


def why_refused(content: Mapping[str, Any]) -> str | None:
    """Return why diagnose.json forbids training (leak, inversion), else None."""
    if leak_reason(content.get("leak")) is not None:
        return LEAKS
    return INVERTED if content["verdict"].get("inverted") else None


def check_diagnosis(run: RunDirectory, *, anyway: bool) -> None:
    """Refuse a leaking or inverted reward of a current diagnosis, or `anyway` note it, if an arm reads a reward."""
    trained = trained_arms(run)
    if all(arm.term is None for arm in run.config.train.arms) or not folder_of(run, "sft").is_dir():
        return
    diagnose = f"adagrpo diagnose --run {run.called}"
    content = find_content(run, "diagnose", "diagnose.json")
    if content is None and all(arm.name in trained for arm in run.config.train.arms):
        return
    if content is None:
        run.console.note(f"note: the reward was not diagnosed; `{diagnose}` says whether it leaks or has a wrong sign")
        return
    if not is_diagnosed(run, content):
        run.console.note(f"note: the diagnosis is of another policy or reward; `{diagnose}` makes it again")
        return
    decision, refused = content["verdict"]["decision"], why_refused(content)
    said = f"{run.called}: diagnose says {decision} of this reward"
    if refused is not None and not anyway:
        raise UserError(f"{said}: {refused}; `adagrpo train --run {run.called} --anyway` trains on it anyway")
    if refused is not None:
        run.console.note(f"note: {said}: {refused}")
    elif decision == "do_not_use":
        run.console.note(f"note: {said}: {NO_GAIN}; `adagrpo decide --run {run.called} --train` measures training")


MOST_CASES, DRAWN = 2000, 50


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
    """Return the first leaking reward's signs, else the first's; None without any. `leaking` names all."""
    found = suspects(models)
    leaking = [name for name, signs in found.items() if signs["signs"]]
    first = next(iter([*leaking, *found]), None)
    if first is None:
        return None
    return found[first] | {"leaking": [reward_title(models.config.reward, name) for name in leaking]}
