"""What a training loop fits: the protocol of a task, its result, and when a policy counts as collapsed.

    rollouts      valid share below half of the first step's in three consecutive steps
    validation    HR@10 below half of that at step 0, by more than three standard errors
    free codes    valid share of a validation below half of that at step 0, and HR@10 not above its start

Valid shares are watched if they start at 0.1 or more. The standard error, sqrt(h_0 + h) for h_0 and h hits, assumes
independent users, which is conservative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from torch import Tensor

from adagrpo.objective import GroupSummary
from adagrpo.trainer.batches import BatchSchedule

KEPT = 0.5  # of what was there at the start
ERRORS = 3.0  # standard errors of a count
RUNNING = 3  # steps
LEAST = 0.1  # least initial share that is watched


@dataclass
class Watch:
    """State of the watch over rollouts."""

    first_valid: float | None = None  # share of the first step's rollouts that name an item
    low_in_a_row: int = 0
    last_valid: float = 1.0  # of the last step with groups

    @property
    def verdict(self) -> str | None:
        """Why the policy counts as collapsed; None if it does not."""
        if self.first_valid is None or self.low_in_a_row < RUNNING:
            return None
        return f"rollouts that name an item fell from {_rate(self.first_valid)} to {_rate(self.last_valid)}"

    def after_step(self, groups: GroupSummary) -> str | None:
        """Update with the groups of a step and return `verdict`."""
        if groups.invalid_share is None:  # a step that reuses groups
            return self.verdict
        valid = 1 - groups.invalid_share
        if self.first_valid is None:
            self.first_valid = valid
        low = self.first_valid >= LEAST and valid < KEPT * self.first_valid
        self.low_in_a_row, self.last_valid = self.low_in_a_row + 1 if low else 0, valid
        return self.verdict


def fallen_in_validation(start: Mapping[str, float], now: Mapping[str, float], cases: int) -> str | None:
    """Return why a validation of some cases shows a collapse since `start`, at step 0; None if it does not."""
    before, after = start.get("hr@10", 0.0), now.get("hr@10", 0.0)
    errors = math.sqrt((before + after) * cases)
    if after < KEPT * before and (before - after) * cases > ERRORS * errors:
        return f"validation HR@10 fell from {_rate(before)} to {_rate(after)}"
    if "invalid_samples" in start and "invalid_samples" in now:
        before, after = 1 - start["invalid_samples"], 1 - now["invalid_samples"]
        if before >= LEAST and after < KEPT * before and now.get("hr@10", 0.0) <= start.get("hr@10", 0.0):
            return f"codes drawn freely that name an item fell from {_rate(before)} to {_rate(after)}"
    return None


def _rate(share: float) -> str:
    return f"{100 * share:.1f} %"


MicroT = TypeVar("MicroT")
Report = Callable[[int, int, Mapping[str, float]], None]

LIMIT = 3  # so many batches in a row that are not finite end a fit
NAMED = 5  # users that a message names


class Diverged(RuntimeError):
    """Three consecutive batches had non-finite numbers."""

    def __init__(self, what: str, step: int, seed: int, users: Sequence[int | str]) -> None:  # the last step, from 1
        self.what, self.step, self.seed, self.users = what, step, seed, list(users)
        named = ", ".join(map(str, self.users[:NAMED])) + (", ..." if len(self.users) > NAMED else "")
        where = f"up to step {step} (seed {seed}; {len(self.users)} users: {named})"
        super().__init__(
            f"{LIMIT} batches in a row are not finite, {where}: {what}. "
            f"Nothing of them was applied; lower the learning rate or check the reward"
        )


class Task(Protocol[MicroT]):
    """A task to fit, over a schedule of batches."""

    schedule: BatchSchedule  # the histories of each step
    steps: int  # of the optimiser
    validate: Callable[[], dict[str, float]]  # returns validation metrics
    monitor: str = "ndcg@10"  # validation metric for the best checkpoint; higher is better
    term_norms_every: int = 0  # steps between measurements of gradient norms per loss term; 0 is never
    stride: int = 1  # checkpoints are taken at multiples of this step count

    def users(self, step: int) -> list[int]:
        """Return the rows of the users of a step."""
        return [int(user) for batch in self.schedule.batches(step // self.stride) for user in batch.users]

    def begin(self, step: int) -> tuple[Sequence[MicroT], dict[str, float]]:
        """Return the micro-batches of a step and values to log. Draws rollouts, without gradients."""

    def loss(self, micro: MicroT) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return scalar loss terms and values to log, both normalised by the whole step."""

    def state(self) -> dict[str, float]:
        """Return running statistics for resumption."""
        return {}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Restore `state`."""
        return


@dataclass(frozen=True)
class Watched:
    """Early stopping when the policy collapses."""

    cases: int  # of validation
    say: Callable[[int, str], None]  # called once, with step and reason
    go_on: bool = False  # keep training nevertheless


@dataclass
class FitResult:
    """Result of a fit."""

    best_step: int
    steps: int
    validation: list[dict[str, float]] = field(default_factory=list)
