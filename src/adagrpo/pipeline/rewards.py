"""A first look at the reward that a configuration names, and what is noted of it.

The look is the stage `reward`: it asks about a few validation cases before anything is trained, so that a reward that
fails, is not finite or says the same of every item is refused at once. `reward.json` keeps the spread of its scores and
of its members', the standard deviation within a case; a sum without weights has no scores yet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from adagrpo.config.reward import RewardOptions, SequentialOptions, WeightedOptions, reward_name
from adagrpo.data.sequences import pad
from adagrpo.errors import NotFinite, ServiceError, UserError
from adagrpo.evaluation.predictions import sample_cases
from adagrpo.groups.score import distinct_candidates
from adagrpo.pipeline.directory import RunDirectory
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.json_files import write_json
from adagrpo.pipeline.stage import Declaration
from adagrpo.rewards import Reward, ask_reward
from adagrpo.types import Cases, Histories

LOOK_CASES, LOOK_ITEMS = 64, 50


def check_reward(models: Models) -> None:
    """Look at the reward before it is used; nothing is written.

    Raises:
        UserError: it says the same of every item, is not finite, or is otherwise wrong in a way that the user can mend.
        ServiceError: an endpoint failed, or what it answers is wrong.
    """
    data, options = models.data, models.config.reward
    # the run's own reward is looked at as groups are scored by it
    reward = models.group_reward() if options == SequentialOptions() else models.reward()
    _spread(data, _cases(data), reward, options)


def first_look(run: RunDirectory) -> Declaration:
    """A look at a reward that the run has not fitted itself, of which is kept how far its scores spread."""
    data, options = RunData(run), run.config.reward
    models = Models(data)

    def build(work: Path) -> None:
        cases = _cases(data)
        content: dict[str, Any] = {"cases": len(cases)}
        if not options.in_spreads:
            content["spread"] = _spread(data, cases, models.reward(), options)
        if isinstance(options, WeightedOptions):
            parts = zip(models.members(), options.parts, strict=True)
            content["members"] = [_spread(data, cases, member, part) for member, part in parts]
        write_json(work / "reward.json", content)

    inputs = [*data.training_files, *models.files_of(options)]
    return Declaration(build, inputs, ("reward.json",), (*models.reward_reads, "seed", "max_history"))


def _cases(data: RunData) -> Cases:
    return sample_cases(data.cases("validation"), LOOK_CASES, data.config.seed)


def _spread(data: RunData, cases: Cases, reward: Reward, options: RewardOptions) -> float:
    """The root of the mean variance of the scores within a case, over the logged item and items drawn at random."""
    draw = np.random.default_rng(data.config.seed)
    padded = pad(cases.histories, np.arange(len(cases)), data.config.max_history)
    users = torch.from_numpy(cases.users.astype(np.int64))
    histories = Histories(*(part.to(data.device) for part in (padded.items, padded.lengths, users)))
    drawn = torch.from_numpy(draw.integers(0, data.num_items, (len(cases), LOOK_ITEMS - 1))).to(data.device)
    targets = torch.from_numpy(cases.targets.astype(np.int64)).to(data.device)
    candidates = distinct_candidates(targets, drawn, drawn[:, :0])
    try:
        scores = ask_reward(reward, histories, candidates.items).double().cpu().numpy()
    except NotFinite as error:
        raise UserError(f"reward {reward_name(options)}: {error}") from error
    if not (np.nanmax(scores, axis=1) > np.nanmin(scores, axis=1)).any():
        said = "gives every item of a case the same score; there is nothing to learn from it"
        message = f"reward {reward_name(options)}: {said}"
        raise ServiceError(message) if options.holds("http") else UserError(message)
    return float(np.sqrt(np.nanvar(scores, axis=1).mean()))


def describe_reward(models: Models) -> dict[str, Any]:
    """Describe the reward, JSON-able: its options and the sha256 of each file that decides it."""
    options, run = models.config.reward, models.run
    files = {run.label(path): run.hash_input(path) for path in models.files_of(options)}
    return {**options.identity(), "files": files}
