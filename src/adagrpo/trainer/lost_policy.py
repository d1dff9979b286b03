"""Detection of a policy that collapses during post-training.

    rollouts      valid share below half of the first step's in three consecutive steps
    validation    HR@10 below half of that at step 0, by more than three standard errors
    free codes    valid share of a validation below half of that at step 0, and HR@10 not above its start

Valid shares are watched if they start at 0.1 or more. The standard error, sqrt(h_0 + h) for h_0 and h hits, assumes
independent users, which is conservative.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from adagrpo.objective import GroupSummary

KEPT = 0.5  # of what was there at the start
ERRORS = 3.0  # standard errors of a count
RUNNING = 3  # steps
LEAST = 0.1  # least initial share that is watched


@dataclass
class Watch:
    """State of the watch over rollouts.

    Example:
        >>> watch = Watch()
        >>> steps = [GroupSummary(invalid_share=share) for share in (0.2, 0.7, 0.7, 0.7)]
        >>> [watch.after_step(groups) is not None for groups in steps]
        [False, False, False, True]
    """

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
    """Return why a validation shows a collapse; None if it does not.

    Args:
        start: metrics at step 0.
        cases: number of validation cases.

    Example:
        >>> fallen_in_validation({"hr@10": 0.4}, {"hr@10": 0.1}, 1000)
        'validation HR@10 fell from 40.0 % to 10.0 %'
    """
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
