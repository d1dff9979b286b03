"""Lists of a source for whole cases, without a policy."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adagrpo.evaluation.predictions import batches
from adagrpo.lists.sources import CandidateSource, best_of
from adagrpo.types import Cases


def list_cases(
    source: CandidateSource,
    cases: Cases,
    *,
    batch_size: int = 256,
    width: int = 50,
    max_history: int | None = None,
    exclude_history: bool = False,
    eligible: Tensor | None = None,
) -> NDArray[np.int64]:
    """Return the (N, W) best items of a source for each case, padded with -1.

    Args:
        max_history: the source sees this many last items; None: all.
        exclude_history: leave out the whole history.
        eligible: (V,) bool, items that may be listed; None: all.
    """
    longest, cpu = max_history or int(cases.histories.lengths.max(initial=1)), torch.device("cpu")
    items = np.full((len(cases), width), -1, dtype=np.int64)
    for rows, histories in batches(cases, batch_size, longest, cpu, whole=exclude_history):
        scores = source.scores(histories)
        closed = torch.zeros_like(scores, dtype=torch.bool)
        if eligible is not None:
            closed |= ~eligible.cpu()
        if exclude_history:
            whole = histories.whole
            closed[(whole >= 0).nonzero()[:, 0], whole[whole >= 0]] = True
        best = best_of(scores, closed, width)[0]
        items[rows, : best.shape[1]] = best.numpy()
    return items
