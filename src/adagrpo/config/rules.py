"""The section `rules`, and the file of `--rules`: what a shop asks of every list, see `adagrpo.lists.rules`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from adagrpo.config.evaluation import GroupFilter, one_or_several
from adagrpo.config.section import Finite, NonNegativeFloat, Positive, Section, Share


class AvailableConfig(Section):
    """Columns of dates between which an item may be listed; an empty cell is no bound."""

    from_: str | None = Field(None, alias="from")
    to: str | None = None

    @property
    def columns(self) -> list[str]:
        """The columns that are named."""
        return [name for name in (self.from_, self.to) if name is not None]


class PinConfig(Section):
    """An item and its rank, from 1."""

    item: int | str
    rank: Positive


class RangeConfig(Section):
    """Numbers from `at_least` to `below`, which is not among them."""

    at_least: Finite | None = None
    below: Finite | None = None

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.at_least is None and self.below is None:
            raise ValueError("a range has at_least, below or both")
        if self.at_least is not None and self.below is not None and self.at_least >= self.below:
            raise ValueError(f"no number is at least {self.at_least:g} and below {self.below:g}")
        return self


class BoostConfig(Section):
    """What is added to the scores of some items, in standard deviations of the list's scores; below 0 a penalty."""

    where: GroupFilter = Field(default_factory=dict)
    range: dict[str, RangeConfig] = Field(default_factory=dict)  # by column of numbers
    by: Finite

    _one_or_several = field_validator("where", mode="before")(one_or_several)

    @model_validator(mode="after")
    def _names_items(self) -> Self:
        if not self.where and not self.range:
            raise ValueError("a boost has where, range or both: the items that it is of")
        return self


class AtMostConfig(Section):
    """At most `n` items with the same value of a column among the first `within`."""

    column: str
    n: Positive
    within: Positive = 10


class RulesConfig(Section):
    """Rules of lists, applied after the scores; `include` and `exclude` as in `evaluation.eligible`."""

    include: GroupFilter = Field(default_factory=dict)
    exclude: GroupFilter = Field(default_factory=dict)
    available: AvailableConfig = AvailableConfig()
    had_within_days: NonNegativeFloat | None = None
    shown_within_days: NonNegativeFloat | None = None
    pins: tuple[PinConfig, ...] = ()
    boosts: tuple[BoostConfig, ...] = ()
    at_most: tuple[AtMostConfig, ...] = ()
    diversity: Share = 0.0

    _one_or_several = field_validator("include", "exclude", mode="before")(one_or_several)

    @model_validator(mode="after")
    def _pins_are_apart(self) -> Self:
        for what, named in (("rank", [pin.rank for pin in self.pins]), ("item", [str(pin.item) for pin in self.pins])):
            twice = next((name for name, count in Counter(named).items() if count > 1), None)
            if twice is not None:
                raise ValueError(f"pins: {what} {twice} is there twice; a pin has a rank and an item of its own")
        return self

    @property
    def columns(self) -> list[str]:
        """The columns of the item table that the rules read."""
        filters: list[Mapping[str, Any]] = [
            self.include,
            self.exclude,
            *(one for boost in self.boosts for one in (boost.where, boost.range)),
        ]
        named = [*(name for one in filters for name in one), *self.available.columns]
        named += [cap.column for cap in self.at_most]
        return [name for name in dict.fromkeys(named) if name != "item_id"]

    @property
    def named(self) -> list[str]:
        """The rules that are set."""
        return list(self.model_dump(exclude_defaults=True))
