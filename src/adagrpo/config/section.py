"""What every section of a configuration is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

from adagrpo.ranges import Finite, NonNegativeFloat, Positive, PositiveFloat, Share

__all__ = ["Finite", "NonNegativeFloat", "Positive", "PositiveFloat", "Section", "Share"]


class Section(BaseModel):
    """A part of the configuration: immutable, and strict about its keys.

    `not_of_the_result` names the keys that decide nothing about any result, such as how often a fit is saved. `tags`
    names those that tell one kind of section from another, which are never left out as a default.

    A section of which some keys are given has the others as they are by default in its place: `train.fit: {epochs: 4}`
    leaves the learning rate at that of `train.fit`, which is not that of `sft`.
    """

    not_of_the_result: ClassVar[frozenset[str]] = frozenset()
    tags: ClassVar[frozenset[str]] = frozenset()
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _keep_defaults_of_the_place(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        kept = dict(content)
        for name, field in cls.model_fields.items():
            given = content.get(name)
            if isinstance(field.default, Section) and isinstance(given, Mapping):
                place = {key: getattr(field.default, key) for key in field.default.model_fields_set}
                kept[name] = place | dict(given)
        return kept
