"""A LightGBM model on the features of `adagrpo.rewards.features` as a reward.

Models are in LightGBM's text format, checked by `adagrpo.rewards.trees`; their feature names select the columns. Scores
are raw.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from adagrpo.errors import UserError, install
from adagrpo.rewards.features import FEATURES, Features
from adagrpo.rewards.trees import MalformedTrees, checked_model
from adagrpo.types import Histories

if TYPE_CHECKING:
    from lightgbm import Booster

_FEW = 4096  # items that one thread scores: several would wait for each other longer, above all where a service is busy
LARGEST_MODEL = 2**28  # bytes; a thousand trees of a thousand leaves have a third of it


class BoostedReward:
    """Implements `adagrpo.rewards.protocol.Reward`."""

    def __init__(self, model: Booster, features: Features) -> None:
        self.model, self.features = model, features
        self.columns = [FEATURES.index(name) for name in model.feature_name()]

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        """Score (B, N) items, see `Reward.score`; each history's user is left out of all counts."""
        if not items.numel():
            return torch.zeros(items.shape, device=items.device)
        table = self.features.of(histories, items)[:, :, self.columns]
        threads = torch.get_num_threads() if items.numel() > _FEW else 1
        scores = self.model.predict(table.reshape(-1, table.shape[2]), raw_score=True, num_threads=threads)
        return torch.from_numpy(np.asarray(scores, np.float32).reshape(items.shape)).to(items.device)


def require_lightgbm(key: str) -> None:
    """Raise a UserError that names the key and the extra to install if LightGBM is missing."""
    try:
        import lightgbm  # noqa: F401
    except (ImportError, OSError) as error:  # OSError: without its OpenMP library
        raise UserError(f"{key}: needs LightGBM ({error}); {install('lightgbm')}") from error


def load_model(path: Path) -> Booster:
    """Load a model in LightGBM's text format.

    Raises:
        UserError: the file is unreadable, malformed or too large, has several outputs, or uses an unknown feature.
    """
    require_lightgbm("reward")
    from lightgbm import Booster
    from lightgbm.basic import LightGBMError

    try:
        if path.stat().st_size > LARGEST_MODEL:
            raise UserError(f"{path}: a model file has at most {LARGEST_MODEL // 2**20} MB; fit fewer trees or leaves")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a LightGBM model in text format") from error
    if not text.startswith("tree\n") or "\nend of trees\n" not in text:
        raise UserError(f"{path}: not a whole LightGBM model in text format (Booster.save_model)")
    try:
        checked, names = checked_model(text)
    except MalformedTrees as error:
        raise UserError(f"{path}: not as LightGBM writes a model: {error}") from error
    unknown = [name for name in names if name not in FEATURES]
    if unknown:
        raise UserError(f"{path}: uses the feature '{unknown[0][:100]}'; there are {', '.join(FEATURES)}")
    try:
        return Booster(model_str=checked)
    except LightGBMError as error:
        raise UserError(f"{path}: LightGBM cannot read it ({error})") from error
