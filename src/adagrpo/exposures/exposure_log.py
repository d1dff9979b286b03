"""Rows of the exposure log: lists shown, with versions and propensities, and the feedback on them.

Rows of any source are validated strictly: no type conversion, finite numbers, times from 1970 to 2286.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Annotated, Literal, Protocol, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from adagrpo.types import ItemId

FAILED = "failed"  # source of a request of an experiment without a list
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
Moment = Annotated[float, Field(ge=0, lt=1e10)]  # seconds since 1970, UTC
RequestId = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]  # SQLite compares texts up to a NUL


class SinkFailed(RuntimeError):
    """Rows could not be made durable, with the disk's error."""


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Exposure:
    """An answer, best first; `ValueError` for an invalid value, or fields that disagree.

    Of a sampled list, given that its request samples, `log_propensities` are the log-probabilities (nats) of each item
    given those above, `log_inclusions` those of being in the list at all, given the threshold of the draw; the inverse
    probability is an unbiased weight. Both are None for other lists.
    """

    request_id: RequestId
    time: Moment
    slate: Annotated[tuple[ItemId, ...], Field(strict=False)]  # ids of the logs
    arm: str
    model_version: str
    catalog_version: str
    user_hash: str | None = None  # keyed; None: no user in the request
    key_version: str | None = None  # fingerprint of that key
    history_hash: str | None = None  # keyed, of history, length and filters of the request
    experiment: str | None = None
    salt_version: str | None = None  # first digits of the plan's hash
    arm_version: str | None = None
    positions: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] | None, Field(strict=False)] = None
    source: str = "policy"  # what made the list: "policy", "fused", "sampled", "popular" ..
    temperature: float | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    log_propensities: Annotated[tuple[float, ...] | None, Field(strict=False)] = None
    log_inclusions: Annotated[tuple[float, ...] | None, Field(strict=False)] = None
    latency_ms: Annotated[float, Field(ge=0)] | None = None
    deal: str | None = None  # in an experiment: "arm", or why the user got the control, see `experiments.allocation`
    teams: Annotated[tuple[str, ...] | None, Field(strict=False)] = None  # arm of each item of an interleaved list
    degraded: str | None = None  # why this is not the arm's usual list; None: it is
    narrowed: bool | None = None  # whether the request restricted its list; None: unknown

    @model_validator(mode="after")
    def _agrees(self) -> Exposure:
        for name in ("positions", "log_propensities", "log_inclusions", "teams"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.slate):
                raise ValueError(f"{name} has {len(values)} values, the slate {len(self.slate)} items")
        if self.user_hash is not None and self.key_version is None:
            raise ValueError("key_version: says which key user_hash was made with")
        if self.experiment is not None and self.salt_version is None:
            raise ValueError("salt_version: says by which plan the experiment was")
        return self


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Feedback:
    """A user's action on an item; the first per request, item and kind counts."""

    request_id: RequestId
    item: ItemId
    kind: str  # "click", "dwell", "purchase" ..
    time: Moment
    value: float = 1.0  # seconds of a dwell


EXPOSURE_FIELDS = tuple(field.name for field in fields(Exposure))
FEEDBACK_FIELDS = tuple(field.name for field in fields(Feedback))
EXPOSURE, FEEDBACK = TypeAdapter(Exposure), TypeAdapter(Feedback)

RowT = TypeVar("RowT", Exposure, Feedback)

# of a row of feedback; "unknown" is stored too: its request, or the item in its list, is not known any more
Outcome = Literal["stored", "unknown", "repeated"]


class ExposureSink(Protocol):
    """Destination of exposures and feedback; its methods are thread-safe."""

    def write(self, rows: Sequence[Exposure], together: Sequence[int] | None = None) -> list[Exposure]:
        """Log rows of answers not yet sent, durable on return; after `SinkFailed`, none may be sent.

        `together` are the rows per request body, in order; None: one each. A body with a request id of another request
        (`same_request`) is not written. Returns the row on record under each request id, for a retry an earlier one.
        """

    def feedback(self, rows: Sequence[Feedback]) -> list[Outcome]:
        """Log feedback, durable once this returns; after `SinkFailed`, none is logged."""

    def close(self) -> None:
        """Finish pending writes; no other call may follow."""


def same_request(one: Exposure, other: Exposure) -> bool:
    """Return whether two rows have one user, history, length and filters."""
    return (one.user_hash, one.history_hash) == (other.user_hash, other.history_hash)


def encode(row: Exposure | Feedback) -> str:
    """Return a row as one line of JSON."""
    names = EXPOSURE_FIELDS if isinstance(row, Exposure) else FEEDBACK_FIELDS
    return json.dumps({name: getattr(row, name) for name in names}, separators=(",", ":"), allow_nan=False)


def decode(text: str | bytes) -> Exposure | Feedback:
    """Decode a row of either kind; `ValueError` names the invalid field."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("not a line of JSON") from error
    try:
        if isinstance(content, dict) and "kind" in content:
            return FEEDBACK.validate_json(text)
        return EXPOSURE.validate_json(text)
    except ValidationError as error:
        raise ValueError(why_refused(error)) from error


def why_refused(error: ValidationError) -> str:
    """Return the first error in one line, without values."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    reason = str(first["msg"]).removeprefix("Value error, ")
    return f"{field}: {reason}" if field else reason
