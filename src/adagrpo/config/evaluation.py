"""The sections `evaluation`, `decide` and `compare`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator

from adagrpo.config.section import Positive, PositiveFloat, Section, nearest
from adagrpo.metrics import comparable

GroupFilter = dict[str, tuple[str | int | bool, ...]]  # values by column of the item table


def one_or_several(content: Any) -> Any:
    """Let a filter name one value of a column without a list."""
    if not isinstance(content, Mapping):
        return content
    return {name: values if isinstance(values, list | tuple) else (values,) for name, values in content.items()}


class EligibleConfig(Section):
    """Group filter of evaluated items, by column.

    See `adagrpo.lists.eligibility`. Cases with another logged item are left out of the metrics, and counted.
    """

    include: GroupFilter = Field(default_factory=dict)
    exclude: GroupFilter = Field(default_factory=dict)

    _one_or_several = field_validator("include", "exclude", mode="before")(one_or_several)


class EvaluationConfig(Section):
    """Full-catalogue evaluation by beam search.

    With `own_items` the user's own items are a list and features of fused lists: for logs of repeated purchases.
    Lists are reproducible across machines only in the same `precision`. `eligible` does not affect fitting and model
    selection.
    """

    beam_width: Annotated[int, Field(ge=10)] = 50
    batch_size: Positive = 256
    exclude_history: bool = False
    own_items: bool = False
    validation_users: Positive | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    eligible: EligibleConfig | None = None


def _comparable(name: str) -> str:
    names = comparable()
    if name not in names:
        raise ValueError(f"no metric '{name}' of each user; {nearest(name, names)}")
    return name


def _all_comparable(margins: dict[str, float]) -> dict[str, float]:
    return {_comparable(name): size for name, size in margins.items()}


class DecideConfig(Section):
    """Choice between lists by `adagrpo decide`; for weights see `adagrpo.rewards.reranking`.

    With `refit` the chosen list is fitted once more, on all interactions. `control` is a file of the list that users
    get today, see `adagrpo.pipeline.stages.control`.
    """

    not_of_the_result: ClassVar[frozenset[str]] = frozenset({"refit", "control"})  # that file's content is read

    exposure_power: Annotated[float, Field(ge=0, le=1)] | None = None
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.01
    refit: bool = True
    control: str | None = None


class CompareConfig(Section):
    """Pre-specified analysis of a comparison, see `adagrpo.evaluation.comparison`.

    `margins` are in units of each metric; `pairs` are differences, first minus second.
    """

    baseline: str = "nll"
    family: tuple[str, ...] | None = None
    pairs: tuple[tuple[str, str], ...] = ()
    metric: Annotated[str, AfterValidator(_comparable)] = "hr@10"
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    margins: Annotated[dict[str, PositiveFloat], AfterValidator(_all_comparable)] = Field(
        {"hr@50": 0.01, "hallucination@10": 0.005}
    )
    resamples: Annotated[int, Field(ge=200)] = 2000
