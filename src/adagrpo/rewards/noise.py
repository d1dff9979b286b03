"""An uninformative reward: a control, or noise in a weighted sum.

Scores are standard normal, a function of seed, history and item (`keyed_uniforms`).
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from adagrpo.data.splits import keyed_uniforms
from adagrpo.types import Histories


class NoiseReward:
    """Implements `adagrpo.rewards.protocol.Reward`."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        """Score (B, N) items, see `Reward.score`."""
        seen, lengths = histories.items.cpu().numpy(), histories.lengths.cpu().numpy()
        state = np.zeros(len(lengths), np.int64)
        for position in range(seen.shape[1]):
            further = (keyed_uniforms(self.seed, state, seen[:, position]) * 2.0**53).astype(np.int64)
            state = np.where(position < lengths, further, state)
        wanted = items.clamp(min=0).cpu().numpy()
        shares = keyed_uniforms(self.seed, np.repeat(state, wanted.shape[1]), wanted.ravel()) + 2.0**-54  # never 0
        return torch.from_numpy(ndtri(shares).reshape(wanted.shape)).to(items.device, torch.float32)
