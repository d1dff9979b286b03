"""Notices that a policy is lost while it is post-trained, so that hours are not spent on one that writes nothing.

    rollouts      the share that names an item fell below half of the first step's, in three steps running
    validation    HR@10 fell below half of what it was at step 0, by more than three standard errors of the count
    free codes    the share that names an item fell so in a validation, and HR@10 is not above its start

A share that is small at the start says nothing by falling, so it is watched from a tenth on. The standard error is that
of the difference of two counts, sqrt(h_0 + h) for h_0 and h hits, as if the users were others; of the same users it is
smaller, so chance ends no fit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from adagrpo.objective import GroupSummary

KEPT = 0.5  # of what was there at the start
ERRORS = 3.0  # standard errors of a count
RUNNING = 3  # steps
LEAST = 0.1  # share at the start from which on a fall says something


@dataclass
class Watch:
    """State of the watch over the steps of a fit.

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
        """Say why the policy counts as lost by its rollouts; None where it does not."""
        if self.first_valid is None or self.low_in_a_row < RUNNING:
            return None
        return f"rollouts that name an item fell from {_rate(self.first_valid)} to {_rate(self.last_valid)}"

    def after_step(self, groups: GroupSummary) -> str | None:
        """Say why the policy counts as lost after a step, by the groups of the step; None where it does not."""
        if groups.invalid_share is None:  # a step without groups of its own, which says nothing new
            return self.verdict
        valid = 1 - groups.invalid_share
        if self.first_valid is None:
            self.first_valid = valid
        low = self.first_valid >= LEAST and valid < KEPT * self.first_valid
        self.low_in_a_row, self.last_valid = self.low_in_a_row + 1 if low else 0, valid
        return self.verdict


def fallen_in_validation(start: Mapping[str, float], now: Mapping[str, float], cases: int) -> str | None:
    """Say why the policy counts as lost by a validation; None where it does not.

    Args:
        start: metrics at step 0.
        now: metrics of the validation.
        cases: that both were measured on.

    Example:
        >>> fallen_in_validation({"hr@10": 0.4}, {"hr@10": 0.1}, 1000)
        'validation HR@10 fell from 40.0 % to 10.0 %'
        >>> fallen_in_validation({"hr@10": 0.02}, {"hr@10": 0.005}, 1000)  # 20 hits and 5
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
