"""Base class of configuration sections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator

from adagrpo.ranges import Finite, NonNegativeFloat, Positive, PositiveFloat, Share

__all__ = ["Finite", "NonNegativeFloat", "Positive", "PositiveFloat", "Section", "Share"]


class Section(BaseModel):
    """An immutable section that rejects unknown keys.

    `not_of_the_result` names keys without influence on results; `tags` names discriminators, never omitted as defaults.
    A partly given section keeps its parent's defaults: `train.fit: {epochs: 4}` has the learning rate of `train.fit`.
    """

    not_of_the_result: ClassVar[frozenset[str]] = frozenset()
    tags: ClassVar[frozenset[str]] = frozenset()
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _keep_defaults_of_the_parent(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        kept = dict(content)
        for name, field in cls.model_fields.items():
            given = content.get(name)
            if isinstance(field.default, Section) and isinstance(given, Mapping):
                parent = {key: getattr(field.default, key) for key in field.default.model_fields_set}
                kept[name] = parent | dict(given)
        return kept

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_yes_or_no(cls, value: Any, info: ValidationInfo) -> Any:
        given = value.values() if isinstance(value, Mapping) else [value]
        if any(isinstance(one, bool) for one in given):
            kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
            if kinds & {int, float} and not kinds & {bool, Any}:
                raise ValueError(f"is a number; yes, on and true are none (found {value!r})")
        return value


def _kinds(annotation: Any) -> set[Any]:
    if get_origin(annotation) is Literal:
        return {type(choice) for choice in get_args(annotation)}
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    parts = get_args(annotation)
    return set().union(*map(_kinds, parts)) if parts else {annotation}
