"""The section `evaluation.eligible`: the part of the catalogue to evaluate on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator

from adagrpo.config.section import Section


class EligibleConfig(Section):
    """Group filter of evaluated items, by column.

    An item must match one of the values of every `include` column, and none of `exclude`. Cases with another logged
    item are left out of the metrics, and counted.
    """

    include: dict[str, tuple[str | int | bool, ...]] = Field(default_factory=dict)
    exclude: dict[str, tuple[str | int | bool, ...]] = Field(default_factory=dict)

    @field_validator("include", "exclude", mode="before")
    @classmethod
    def _one_or_several(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        return {name: values if isinstance(values, list | tuple) else (values,) for name, values in content.items()}
