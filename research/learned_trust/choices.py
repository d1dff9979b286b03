"""Fits the weights of a reward to validation choices and writes them into a file that `trusted` reads.

The beams are the starting policy's, of validation cases alone. See `research.learned_trust.fit` for what is fitted and
when it is given up.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adagrpo.config.reward import FeatureOptions
from adagrpo.data.sequences import pad
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.run import Run
from adagrpo.pipeline.stages.fitting import progress
from adagrpo.rewards import Reward, ask_reward
from adagrpo.storage.writing import write_file
from adagrpo.types import Cases
from research.learned_trust.fit import Choices, fit_trust
from research.learned_trust.trust import FACTORS, trust_items

__all__ = ["choices_of", "trusted_options", "write_trust"]


def write_trust(run: Run, out: Path) -> dict[str, Any]:
    """Fit the weights of a run's reward, and write them.

    Args:
        run: with the stages prepare, tokenize, sft and what its reward needs.
        out: the file, new or written by this before.

    Returns:
        The decision (`levels`, `one weight` or `none`), the file, and the facts behind it.

    Raises:
        UserError: a stage is missing.
    """
    models = Models(RunData(run))
    items = trust_items(models.data)
    fit = fit_trust(choices_of(models, "validation"), items)
    write_file(out, fit.model._replace(groups=items.names).as_json())
    facts: dict[str, Any] = json.loads(json.dumps(fit.facts, allow_nan=False))
    return {"decision": fit.decision, "file": str(out), "factors": list(FACTORS)} | facts


def trusted_options(member: str, file: Path) -> str:
    """The section `reward` of a reward under weights that were fitted to it.

    Args:
        member: the section of the reward.
        file: of the weights, its absolute path.
    """
    made = 'kind: factory, function: "research.learned_trust.trust:trusted"'
    return f'{{{made}, members: [{member}], options: {{model: "{file}"}}, files: ["{file}"]}}'


def choices_of(models: Models, split: str) -> Choices:
    """The starting policy's beams of a split, with what the reward and item-kNN say of them."""
    data, run = models.data, models.run
    weights = run.path("sft", "best")
    for path in [*data.catalog_files, weights / "model.safetensors", *models.reward_files]:
        run.hash_input(path)
    policy, cases = models.policy(weights), data.cases(split)
    beams = models.predict(policy, cases, models.reward(), progress(run, f"trust {split}"))
    second = _scores(models.reward_of(FeatureOptions()), models, cases, beams.items)
    assert beams.rewards is not None, "predicted with a reward"
    lengths = np.minimum(cases.histories.lengths, run.config.max_history)
    scores, rewards = beams.scores.astype(np.float64), np.nan_to_num(beams.rewards.astype(np.float64))
    return Choices(beams.items, scores, rewards, second, cases.targets.astype(np.int64), lengths)


def _scores(reward: Reward, models: Models, cases: Cases, items: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N, W) scores of items (N, W) for the histories of the cases; whose they are is not said. 0 where none is."""
    size, device, scores = models.config.evaluation.batch_size, models.data.device, []
    for first in range(0, len(cases), size):
        rows = np.arange(first, min(first + size, len(cases)))
        histories = pad(cases.histories, rows, models.config.max_history).to(device)
        scores.append(ask_reward(reward, histories, torch.from_numpy(items[rows]).to(device)).double().cpu().numpy())
    return np.asarray(np.nan_to_num(np.concatenate(scores)))
