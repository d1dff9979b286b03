"""Plan of an experiment: a YAML file, frozen before the first outcome is read.

The hash of its content is stored next to it, in `PLAN.frozen.json`, and printed with every result.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from adagrpo.config.section import Positive, PositiveFloat, Section, read_section
from adagrpo.errors import UserError
from adagrpo.storage.hashes import hash_json, with_hash, without_hash
from adagrpo.storage.writing import write_file

DAY = 86_400.0  # seconds
PLAN_DIGITS = 12  # of a plan's hash, in rows
Level = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(min_length=1, max_length=100)]


class PlannedArm(Section):
    """An arm's weight, and what its users are served."""

    weight: PositiveFloat = 1.0
    serves: Name  # an arm of a run
    checkpoint: Literal["best", "final"] = "best"
    run: str | None = None  # its folder, relative to the plan; None: the run that is served

    @property
    def version(self) -> str:
        """Arm and checkpoint, as answers name them."""
        return f"{self.serves}/{self.checkpoint}"


class RampStage(Section):
    """From a day on, counted from the start, a share of the users is in the experiment."""

    day: Annotated[float, Field(ge=0)]
    share: Annotated[float, Field(gt=0, le=1)]


class PlannedMetric(Section):
    """A number per user, or a ratio of two, see `adagrpo.experiments.units`.

    `mean` and `deviation` are of the control arm: of a ratio, the ratio and its deviation by the delta method.
    """

    sum: Name
    per: Name | None = None
    cuped: bool = False
    better: Literal["up", "down"] = "up"
    expected: PositiveFloat | None = None
    mean: PositiveFloat | None = None
    deviation: PositiveFloat | None = None

    @model_validator(mode="after")
    def _falls_by_less_than_all(self) -> PlannedMetric:
        if self.better == "down" and self.expected is not None and self.expected >= 1:
            raise ValueError("expected: a fall of 1 is all of it; give a share below 1")
        return self


class Guardrail(Section):
    """A ratio that may get worse by less than the share `margin` of the control's."""

    sum: Name
    per: Name | None = None
    better: Literal["up", "down"] = "down"
    margin: PositiveFloat


class ShipRule(Section):
    """Metrics that ship: one is better, none worse, and every guardrail within its margin."""

    metrics: tuple[Name, ...] = ()  # none: all


class Plan(Section):
    """All that is decided before the first user; see `docs/how-to/ab.md`."""

    name: Name
    kind: Literal["ab", "interleaving"] = "ab"
    arms: dict[Name, PlannedArm]
    control: Name
    salt: Annotated[str, Field(min_length=4)]
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    exclude: tuple[str, ...] = ()  # user hashes, as in the log
    start: Annotated[date, Field(ge=date(1970, 1, 1), le=date(2200, 1, 1))]
    days: Annotated[int, Field(ge=1, le=1000)]
    days_before: Annotated[int, Field(ge=0, le=1000)] = 14  # for covariates and popularity
    ramp: tuple[RampStage, ...] = ()  # none: all users from the start
    metrics: dict[Name, PlannedMetric] = Field(default_factory=dict)
    credit: Name = "click"  # kind of feedback credited to an item's arm, for interleaving
    guardrails: dict[Name, Guardrail] = Field(default_factory=dict)
    alpha: Level = 0.05
    power: Level = 0.8
    looks: Literal["end", "daily"] = "end"
    answers: Positive | None = None  # expected until the end, for `looks: daily`
    within_seconds: PositiveFloat = 604_800.0  # later feedback does not count
    slow_ms: PositiveFloat = 500.0  # a longer answer is `slow`
    users_a_day: PositiveFloat | None = None  # new users, for `duration`
    catalogue: str | None = None  # a text file, relative to the plan, one item per line
    most_misassigned: Annotated[float, Field(ge=0, lt=1)] = 0.001  # share of answers of a wrong arm
    rule: ShipRule = ShipRule()

    @model_validator(mode="after")
    def _agrees(self) -> Plan:
        if len(self.arms) < 2:
            raise ValueError(f"arms: {len(self.arms)}; an experiment has at least two")
        if self.kind == "ab" and not self.metrics:
            raise ValueError("metrics: none; say what the arms are compared by")
        if self.kind == "interleaving" and len(self.arms) != 2:
            raise ValueError(f"arms: {len(self.arms)}; two are interleaved")
        if self.kind == "interleaving" and (self.metrics or self.guardrails):
            raise ValueError("metrics, guardrails: interleaved lists belong to both arms; only `credit` is counted")
        if self.control not in self.arms:
            raise ValueError(f"control: {self.control!r} is none of the arms {', '.join(self.arms)}")
        unknown = [name for name in self.rule.metrics if name not in self.metrics]
        if unknown:
            raise ValueError(f"rule.metrics: {unknown[0]!r} is none of the metrics {', '.join(self.metrics)}")
        if self.looks == "daily" and self.answers is None:
            raise ValueError("answers: say how many are expected until the end; `looks: daily` is tightest there")
        for earlier, later in itertools.pairwise(self.ramp):
            if later.day <= earlier.day or later.share <= earlier.share:
                raise ValueError(
                    f"ramp: day {later.day:g} comes after day {earlier.day:g}; both day and share must grow"
                )
        for name, metric in self.metrics.items():
            if metric.cuped and (metric.per is not None or not self.days_before):
                raise ValueError(f"metrics.{name}.cuped: is for a number a user, with days_before above 0")
        return self

    @property
    def begins(self) -> float:
        """Start of the first day, UTC, in seconds since 1970."""
        return datetime.combine(self.start, time(), UTC).timestamp()

    @property
    def ends(self) -> float:
        """End of the last day, in seconds since 1970."""
        return self.begins + self.days * DAY

    def share(self, moment: float) -> float:
        """Return the planned share of users at a time."""
        if not self.begins <= moment < self.ends:
            return 0.0
        if not self.ramp:
            return 1.0
        day = (moment - self.begins) / DAY
        return max((stage.share for stage in self.ramp if stage.day <= day), default=0.0)

    @property
    def deciding(self) -> tuple[str, ...]:
        """Metrics of the ship rule."""
        return self.rule.metrics or tuple(self.metrics)

    @property
    def treatments(self) -> tuple[str, ...]:
        """All arms but the control."""
        return tuple(name for name in self.arms if name != self.control)


def moment_of(time: float) -> str:
    """Format seconds since 1970 as an ISO time in UTC."""
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="seconds")


def read_plan(path: Path) -> Plan:
    """Read a plan; errors as in `read_section`."""
    return read_section(path, Plan, "plan")


def frozen_path(path: Path) -> Path:
    """Return the file of a plan's hash, next to it."""
    return path.with_name(f"{path.name}.frozen.json")


def freeze(path: Path, plan: Plan, *, now: datetime) -> Mapping[str, Any]:
    """Write a plan's hash and the time, or check them; `UserError` if plan, catalogue or file changed."""
    if (frozen := read_frozen(path, plan)) is not None:
        return frozen
    content = {"plan": hash_of(path, plan), "time": now.isoformat(timespec="seconds")}
    write_file(frozen_path(path), json.dumps(with_hash(content)) + "\n")
    return content


def hash_of(path: Path, plan: Plan) -> str:
    """Return the hash of a plan and its catalogue."""
    content: dict[str, Any] = plan.model_dump(mode="json")
    if plan.catalogue is not None:
        content["catalogue"] = sorted(read_catalogue(path, plan))
    return hash_json(content)


def read_frozen(path: Path, plan: Plan) -> Mapping[str, Any] | None:
    """Return what `freeze` wrote; None if the plan is not frozen."""
    target, found = frozen_path(path), hash_of(path, plan)
    if not target.exists():
        return None
    try:
        frozen = without_hash(json.loads(target.read_text(encoding="utf-8")))
        before = str(frozen["plan"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise UserError(f"{target}: is not as it was written; take it from a copy") from error
    if before != found:
        raise UserError(
            f"{path}: was changed after it was frozen on {frozen['time']} ({before[:12]} then, {found[:12]} now); "
            "undo the change, or plan another experiment under another name and salt"
        )
    return frozen


def read_catalogue(path: Path, plan: Plan) -> frozenset[str]:
    """Read the plan's catalogue, relative to the plan; empty if it names none."""
    if plan.catalogue is None:
        return frozenset()
    file = path.parent / plan.catalogue
    try:
        return frozenset(file.read_text(encoding="utf-8-sig").split("\n")) - {""}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read (catalogue of {path}); give a text file, one item a line") from error
