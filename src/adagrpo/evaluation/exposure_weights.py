"""Weights of logged choices by how often their items were shown."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CLIPPED = 0.1  # share of the cases whose weight is bounded
EXPOSURE_POWER = 0.5  # by default

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def exposure_weights(shown: Ints) -> Floats:
    """Return (N,) 1 / (times the logged item was shown), counts clipped from below at their tenth percentile.

    Clipped inverse propensities (Schnabel et al. 2016), as if popularity alone decided what is shown.

    >>> exposure_weights(np.array([1, 10, 10, 20])).round(2).tolist()
    [0.27, 0.1, 0.1, 0.05]
    """
    counts = np.maximum(shown.astype(np.float64), 1.0)
    return np.asarray(1 / np.maximum(counts, np.quantile(counts, CLIPPED)))


def case_weights(shown: Ints, power: float = EXPOSURE_POWER) -> Floats:
    """Return (N,) `exposure_weights ** power` of mean 1, the weights of cases in a choice between lists.

    A case whose item was never shown weighs 1. The default is the root, as liked items are shown more
    (`research/decisions`).

    >>> case_weights(np.array([1, 10, 10, 20, 0])).round(2).tolist()
    [1.51, 0.92, 0.92, 0.65, 1.0]
    """
    known, weights = shown > 0, np.ones(len(shown))
    if known.any():
        powers = exposure_weights(shown[known]) ** power
        weights[known] = powers / powers.mean()
    return weights
