"""Summary of a step's groups: a record, whose names are the keys of a row of `steps.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class GroupSummary:
    """Means over the groups of a step; None where there is nothing to take one over, or it was not measured."""

    invalid_share: float | None = None  # of the rollouts as they were drawn, those that name no item
    entropy: float | None = None  # of the rollouts, nats
    admission: float | None = None  # of the samples, those that the gate admitted
    rejected_easy: float | None = None
    rejected_undiscriminated: float | None = None
    rejected_degenerate: float | None = None
    rejected_closed: float | None = None
    scored_pairs: float | None = None  # a count: what the reward was asked for
    empty_groups: float | None = None  # a count: those without an item; None where there is none
    reward: float | None = None  # of the valid rollouts
    contains_target: float | None = None  # of the groups, those that hold the logged item
    admitted_contains_target: float | None = None  # the same of those that were admitted
    kl: float | None = None  # from the starting policy, nats
    constant_rewards: float | None = None  # of the samples, those whose rewards are all the same
    shuffled_admission: float | None = None  # of the samples, those that the gate would admit by shuffled rewards

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Self:
        """Read what a row says of groups; it may say more, and less.

        Example:
            >>> GroupSummary.of_row({"step": 3, "admission": 0.25}).admission
            0.25
        """
        return cls(**{one.name: row[one.name] for one in fields(cls) if one.name in row})

    def to_json(self) -> dict[str, float]:
        """Return what was measured, by name."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def progress(self) -> dict[str, float]:
        """Return the quantities for a line of progress, by name."""
        return GroupSummary(reward=self.reward, admission=self.admission, invalid_share=self.invalid_share).to_json()
