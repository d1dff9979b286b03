"""Protocol between the training loop and its tasks, and the results of a fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from torch import Tensor

from adagrpo.trainer.batches import BatchSchedule

MicroT = TypeVar("MicroT")
Report = Callable[[int, int, Mapping[str, float]], None]

LIMIT = 3  # so many batches in a row that are not finite end a fit
NAMED = 5  # users that a message names


class Diverged(RuntimeError):
    """Three consecutive batches had non-finite numbers."""

    def __init__(self, what: str, step: int, seed: int, users: Sequence[int | str]) -> None:
        """Build the message.

        Args:
            step: the last of the three, counted from 1.
            users: of that step, rows or ids.
        """
        self.what, self.step, self.seed, self.users = what, step, seed, list(users)
        named = ", ".join(map(str, self.users[:NAMED])) + (", ..." if len(self.users) > NAMED else "")
        where = f"up to step {step} (seed {seed}; {len(self.users)} users: {named})"
        super().__init__(
            f"{LIMIT} batches in a row are not finite, {where}: {what}. "
            f"Nothing of them was applied; lower the learning rate or check the reward"
        )


class Task(Protocol[MicroT]):
    """A task to fit."""

    @property
    def schedule(self) -> BatchSchedule:
        """The histories of each step."""
        ...

    @property
    def steps(self) -> int:
        """Number of optimiser steps."""
        ...

    @property
    def monitor(self) -> str:
        """Validation metric for the best checkpoint; higher is better."""
        ...

    @property
    def term_norms_every(self) -> int:
        """Steps between measurements of gradient norms per loss term; 0 is never."""
        ...

    @property
    def stride(self) -> int:
        """Checkpoints are taken at multiples of this step count."""
        ...

    def users(self, step: int) -> Sequence[int]:
        """Return the rows of the users of a step."""
        ...

    def begin(self, step: int) -> tuple[Sequence[MicroT], dict[str, float]]:
        """Return the micro-batches of a step and values to log. Draws rollouts, without gradients."""
        ...

    def loss(self, micro: MicroT) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return scalar loss terms and values to log, both normalised by the whole step."""
        ...

    def validate(self) -> dict[str, float]:
        """Return validation metrics."""
        ...

    def state(self) -> dict[str, float]:
        """Return running statistics for resumption."""
        ...

    def load_state(self, state: Mapping[str, float]) -> None:
        """Restore `state`."""
        ...


@dataclass(frozen=True)
class Watched:
    """Early stopping when the policy collapses.

    Attributes:
        cases: validation cases.
        say: called once, with step and reason.
        go_on: keep training nevertheless.
    """

    cases: int
    say: Callable[[int, str], None]
    go_on: bool = False


@dataclass
class FitResult:
    """Result of a fit."""

    best_step: int
    steps: int
    validation: list[dict[str, float]] = field(default_factory=list)
