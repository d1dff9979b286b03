"""Summary of a step's groups; its field names are keys of `steps.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class GroupSummary:
    """Means over the groups of a step; None where not measured or undefined."""

    invalid_share: float | None = None  # share of the drawn rollouts that name no item
    entropy: float | None = None  # of the rollouts, nats
    admission: float | None = None  # share of the samples that the gate admitted
    rejected_easy: float | None = None
    rejected_undiscriminated: float | None = None
    rejected_degenerate: float | None = None
    rejected_closed: float | None = None
    scored_pairs: float | None = None  # a count: pairs that the reward scored
    empty_groups: float | None = None  # a count: groups without an item; None if 0
    reward: float | None = None  # of the valid rollouts
    contains_target: float | None = None  # share of the groups that hold the logged item
    admitted_contains_target: float | None = None  # the same among admitted groups
    kl: float | None = None  # from the starting policy, nats
    constant_rewards: float | None = None  # share of the groups with several items whose rewards are all equal
    shuffled_admission: float | None = None  # share of the samples that the gate would admit by shuffled rewards

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Self:
        """Return the summary in a row of `steps.jsonl`; other keys are ignored, missing ones are None.

        Example:
            >>> GroupSummary.of_row({"step": 3, "admission": 0.25}).admission
            0.25
        """
        return cls(**{one.name: row[one.name] for one in fields(cls) if one.name in row})

    def to_json(self) -> dict[str, float]:
        """Return the measured values by name."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def progress(self) -> dict[str, float]:
        """Values to show on a progress line, by name."""
        return GroupSummary(reward=self.reward, admission=self.admission, invalid_share=self.invalid_share).to_json()
