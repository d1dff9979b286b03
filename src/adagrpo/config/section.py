"""What every section of a configuration is made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from adagrpo.ranges import Finite, NonNegativeFloat, Positive, PositiveFloat, Share

__all__ = ["Finite", "NonNegativeFloat", "Positive", "PositiveFloat", "Section", "Share"]


class Section(BaseModel):
    """A part of the configuration: immutable, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
