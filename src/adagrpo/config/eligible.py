"""The section `evaluation.eligible`: the part of the catalogue that lists are measured on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator

from adagrpo.config.section import Section


class EligibleConfig(Section):
    """Items that measured lists may hold: values of groups of the items, by the column.

    A filter is as in a request: an item must match every column of `include`, by any of its values, and none of
    `exclude`. Cases whose logged item is not eligible are left out of the metrics, and counted. It is for shops that
    serve part of their catalogue, such as what is in stock.
    """

    include: dict[str, tuple[str | int | bool, ...]] = Field(default_factory=dict)
    exclude: dict[str, tuple[str | int | bool, ...]] = Field(default_factory=dict)

    @field_validator("include", "exclude", mode="before")
    @classmethod
    def _one_or_several(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        return {name: values if isinstance(values, list | tuple) else (values,) for name, values in content.items()}
