"""Overlap of two policies: whether a log supports an estimate of another policy's reward.

    effective size      n_eff = (Σ w)² / Σ w²                                      (Kish 1965)
    mean weight         E[w] = 1 where the log's probabilities are right           (w = π / π_0)

A log is refused where few answers carry most of the weight, or where the mean weight differs from 1: the logged
probabilities are then wrong, or the target shows items that the log never did.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LEAST = 100.0  # effective answers; normal intervals are unreliable below
LARGEST = 0.1  # share of all weight on one answer
ERRORS, SLACK = 4.0, 0.01  # tolerated |mean weight - 1|: standard errors, plus slack


class ThinOverlap(ValueError):
    """A log with too little overlap with a policy; the message says why."""


class Overlap(NamedTuple):
    """Statistics of the importance weights of a log."""

    effective_size: float
    largest: float  # share of all weight on one answer
    mean: float  # of the weights; 1 where the probabilities are right
    mean_error: float  # its standard error

    @property
    def problem(self) -> str | None:
        """Why not to estimate from this log; None where there is no problem."""
        if self.effective_size < LEAST:
            return f"all answers together weigh as much as {self.effective_size:.0f}; at least {LEAST:.0f} are needed"
        if self.largest > LARGEST:
            return f"one answer carries {self.largest:.0%} of all weight"
        if abs(self.mean - 1) > ERRORS * self.mean_error + SLACK:
            return (
                f"weights are {self.mean:.3f} on average where right ones are 1 (standard error {self.mean_error:.3f}):"
                " the logged probabilities are not those of the policy that was served, or it never shows what the"
                " other policy does"
            )
        return None

    def check(self) -> None:
        """Raise ThinOverlap where there is a problem."""
        if self.problem is not None:
            raise ThinOverlap(self.problem)


def effective_size(
    weights: NDArray[np.floating],  # (N,)
) -> float:
    """Return the effective sample size: (Σ w)² / Σ w².

    >>> float(effective_size(np.array([1.0, 1.0, 0.0, 0.0])))
    2.0
    """
    squares = float(np.square(weights).sum())
    return float(weights.sum()) ** 2 / squares if squares > 0 else 0.0


def overlap(
    weights: NDArray[np.floating],  # (N,)
) -> Overlap:
    """Return the overlap statistics of importance weights."""
    if weights.ndim != 1 or len(weights) == 0 or not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError("weights must be (N,) finite numbers of at least 0, N at least 1")
    total = float(weights.sum())
    largest = float(weights.max()) / total if total > 0 else 1.0
    error = float(weights.std(ddof=1)) / np.sqrt(len(weights)) if len(weights) > 1 else np.inf
    return Overlap(effective_size(weights), largest, total / len(weights), float(error))
