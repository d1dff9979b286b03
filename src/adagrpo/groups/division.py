"""Groups that several processes draw and score together: each computes some rows of a step, and all hold every row.

A row's rollouts and scores depend on its own history alone, so rows can be divided. What reads several rows at once,
in-batch negatives, the spread of rewards, the gate and what a step logs, is computed from all of them, in every
process, from the same draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor


class Division(Protocol):
    """Which rows of a step are whose."""

    def complete_(self, wholes: Sequence[Tensor], compute: Callable[[Tensor], Sequence[Tensor]]) -> None:
        """Fill tensors whose first dimension is the rows of a step.

        Args:
            wholes: zeros, which become what the processes computed.
            compute: the part of each that is at the rows it is given; not called without any. What it raises in one
                process is raised in all.
        """
        ...


def by_rows(
    division: Division | None, wholes: Sequence[Tensor], compute: Callable[[Tensor | None], Sequence[Tensor]]
) -> Sequence[Tensor]:
    """Compute a function for all rows of a step, each process its own.

    Args:
        division: of the rows; None where one process has them all.
        wholes: zeros of the shapes and types of the result.
        compute: takes the rows that are wanted, or None for all of them.
    """
    if division is None:
        return compute(None)
    division.complete_(wholes, compute)
    return wholes
