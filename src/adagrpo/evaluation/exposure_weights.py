"""What a logged choice weighs where the logs say what was shown: what was shown often is chosen often."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CLIPPED = 0.1  # share of the cases whose weight is bounded

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def exposure_weights(shown: Ints) -> Floats:
    """(N,) one over how often each case's logged item was shown, at least as often as a tenth of the cases' items.

    What was shown often is clicked often, so that the cases are of items that were shown; weighted so, they stand for
    what users would have chosen of items shown alike, as far as popularity alone decided what was shown (inverse
    propensities, clipped: Schnabel et al. 2016).

    Example:
        >>> exposure_weights(np.array([1, 10, 10, 20])).round(2).tolist()
        [0.27, 0.1, 0.1, 0.05]
    """
    counts = np.maximum(shown.astype(np.float64), 1.0)
    return np.asarray(1 / np.maximum(counts, np.quantile(counts, CLIPPED)))


def case_weights(shown: Ints, power: float = 0.5) -> Floats:
    """(N,) a power of `exposure_weights`, of mean 1: what a validation case weighs in a choice between lists.

    A case whose item the impressions never show was chosen elsewhere, in a search say, and weighs 1.

    The root, since counts overstate the bias: what users like is shown more often too. In simulated shops it gains most
    of what the whole weight does in true utility, and costs fewer hits (`research/decisions`). At 0 all cases are
    alike: the lists are then those for what the platform shows.

    Example:
        >>> case_weights(np.array([1, 10, 10, 20, 0])).round(2).tolist()
        [1.51, 0.92, 0.92, 0.65, 1.0]
        >>> case_weights(np.array([1, 10, 10, 20, 0]), power=0.0).tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0]
    """
    known, weights = shown > 0, np.ones(len(shown))
    if known.any():
        powers = exposure_weights(shown[known]) ** power
        weights[known] = powers / powers.mean()
    return weights
