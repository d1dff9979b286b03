"""Fits the weights of a reward to validation choices and writes them into a file, for `reward.kind: trusted`.

The beams are the starting policy's, of validation cases alone. See `adagrpo.evaluation.trust_fit` for what is fitted
and when it is given up, and `adagrpo.rewards.trust` for what reads the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adagrpo.config.reward import FeatureOptions, TrustedOptions
from adagrpo.data.sequences import pad
from adagrpo.errors import UserError
from adagrpo.evaluation.trust_fit import Choices, fit_trust
from adagrpo.pipeline.directory import RunDirectory
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.reward_data import trust_items
from adagrpo.pipeline.stages.evaluate import progress
from adagrpo.rewards import Reward, ask_reward
from adagrpo.rewards.trust import FACTORS
from adagrpo.storage.writing import write_file
from adagrpo.types import Cases

__all__ = ["choices_of", "write_trust"]


def write_trust(run: RunDirectory, out: Path) -> dict[str, Any]:
    """Fit the weights of a run's reward, and write them.

    Args:
        run: with the stages prepare, tokenize, sft and what its reward needs.
        out: the file.

    Returns:
        The decision (`levels`, `one weight` or `none`), the file, and the facts behind it.

    Raises:
        UserError: a stage is missing, or the reward has weights already.
    """
    if isinstance(run.config.reward, TrustedOptions):
        raise UserError("reward.kind: 'trusted' has weights already; fit those of its member")
    models = Models(RunData(run))
    items = trust_items(models.data)
    fit = fit_trust(choices_of(models, "validation"), items)
    write_file(out, fit.model._replace(groups=items.names).as_json())
    facts: dict[str, Any] = json.loads(json.dumps(fit.facts, allow_nan=False))
    return {"decision": fit.decision, "file": str(out), "factors": list(FACTORS)} | facts


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
