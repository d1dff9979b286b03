"""The sections `evaluation`, `decide` and `compare`: how lists are measured, chosen and claimed to differ."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from adagrpo.config.eligible import EligibleConfig
from adagrpo.config.messages import nearest
from adagrpo.config.section import Positive, PositiveFloat, Section
from adagrpo.metrics import comparable


class EvaluationConfig(Section):
    """Full-catalogue evaluation by beam search, and all lists that a run gives out.

    `precision` is what the policy computes beams in; `auto` is bfloat16 where the processor or GPU has it natively. Two
    machines, or two programs, give the same lists only in the same precision. `eligible` holds the lists that are
    measured to part of the catalogue; what is fitted and selected does not change with it. `validation_users` are as
    many of those with a validation case as are measured, a fixed sample; null is all of them. Test has no such limit.
    """

    beam_width: Annotated[int, Field(ge=10)] = 50
    batch_size: Positive = 256
    exclude_history: bool = False
    validation_users: Positive | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    eligible: EligibleConfig | None = None


def _comparable(name: str) -> str:
    """A metric that a comparison can be planned on."""
    names = comparable()
    if name not in names:
        raise ValueError(f"no metric '{name}' of each user; {nearest(name, names)}")
    return name


def _all_comparable(margins: dict[str, float]) -> dict[str, float]:
    for name in margins:
        _comparable(name)
    return margins


class DecideConfig(Section):
    """How `adagrpo decide` weighs validation cases and what a simpler list may lose.

    Where the logs say what was shown, a case weighs (1 / times its item was shown) ** `exposure_power` in fits of lists
    and choices between them, see `adagrpo.evaluation.exposure_weights`; 0 counts all cases alike. A simpler list is
    taken if it loses less than `margin`, a share of the best one's NDCG@10.
    """

    exposure_power: Annotated[float, Field(ge=0, le=1)] = 0.5
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.01


class CompareConfig(Section):
    """The decision that a comparison is for, fixed before its runs: see `adagrpo.evaluation.comparison`.

    `family` holds the arms that claims are made about (null: every arm but sft and the baseline); `margins` say how
    much worse than the baseline an arm may be on other metrics, in the metric's own units. `pairs` names arms that are
    compared with each other too, such as a gate and a random one: the first minus the second, with an interval. Its
    keys are for those who fix a decision in the recipe; without them the defaults decide.
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
