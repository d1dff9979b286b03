"""Division of a step's rows among processes: each draws and scores some rows, and all end up with every row.

In-batch negatives, the gate and logged means are computed from all rows in every process, from the same random draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor


class Division(Protocol):
    """Assigns the rows of a step to processes."""

    def complete_(self, wholes: Sequence[Tensor], compute: Callable[[Tensor], Sequence[Tensor]]) -> None:
        """Fill tensors whose first dimension is the rows of a step.

        Args:
            wholes: zeros, filled in place with the results of all processes.
            compute: returns the parts at the given rows, at least one; its exceptions are raised in all processes.
        """
        ...


def by_rows(
    division: Division | None, wholes: Sequence[Tensor], compute: Callable[[Tensor | None], Sequence[Tensor]]
) -> Sequence[Tensor]:
    """Compute a function for all rows of a step, each process its own rows.

    Args:
        division: None where one process has all rows.
        wholes: zeros with the shapes and dtypes of the result.
    """
    if division is None:
        return compute(None)
    division.complete_(wholes, compute)
    return wholes
