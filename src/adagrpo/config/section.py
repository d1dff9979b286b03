"""What every section of a configuration is made of."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from adagrpo.ranges import Finite, NonNegativeFloat, Positive, PositiveFloat, Share

__all__ = ["Finite", "NonNegativeFloat", "Positive", "PositiveFloat", "Section", "Share"]


class Section(BaseModel):
    """A part of the configuration: immutable, and strict about its keys.

    `not_of_the_result` names the keys that decide nothing about any result, such as how often a fit is saved. `tags`
    names those that tell one kind of section from another, which are never left out as a default.
    """

    not_of_the_result: ClassVar[frozenset[str]] = frozenset()
    tags: ClassVar[frozenset[str]] = frozenset()
    model_config = ConfigDict(frozen=True, extra="forbid")
