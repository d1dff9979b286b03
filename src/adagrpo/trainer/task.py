"""Protocol between the training loop and its callers: the task, the result of a fit, and how it can end early."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from torch import Tensor

MicroT = TypeVar("MicroT")
Report = Callable[[int, int, Mapping[str, float]], None]

LIMIT = 3  # so many batches in a row that are not finite end a fit
NAMED = 5  # users that a message names


class Diverged(RuntimeError):
    """Three batches in a row had a number that was not finite."""

    def __init__(self, what: str, step: int, seed: int, users: Sequence[int | str]) -> None:
        """Say what it was.

        Args:
            what: what was not finite in the last one.
            step: the last of the steps, counted from 1; the loop stands before it.
            users: whose histories made up that step: rows or, where they are known, ids.
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
    def steps(self) -> int:
        """Optimiser steps in all."""
        ...

    @property
    def monitor(self) -> str:
        """The validation metric, higher is better, that chooses the best checkpoint."""
        ...

    @property
    def term_norms_every(self) -> int:
        """The steps between measurements of each loss term's gradient norm; 0 is never."""
        ...

    @property
    def stride(self) -> int:
        """Checkpoints are taken at multiples of this many steps, where the task holds nothing from earlier steps."""
        ...

    def users(self, step: int) -> Sequence[int]:
        """Rows of the users whose histories make up a step."""
        ...

    def begin(self, step: int) -> tuple[Sequence[MicroT], dict[str, float]]:
        """The micro-batches of a step, and what is to be logged about it. Draws rollouts, without gradients."""
        ...

    def loss(self, micro: MicroT) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Scalar loss terms of a micro-batch and numbers to log, both divided by the counts of the whole step."""
        ...

    def validate(self) -> dict[str, float]:
        """Metrics on validation data."""
        ...

    def state(self) -> dict[str, float]:
        """Running numbers that a resumed run needs."""
        ...

    def load_state(self, state: Mapping[str, float]) -> None:
        """Take back what `state` gave."""
        ...


@dataclass(frozen=True)
class Watched:
    """That a policy's fit ends once the policy is lost.

    Attributes:
        cases: that validation is measured on.
        say: called once, with the step and the reason.
        go_on: train on all the same.
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
