"""Rows of the exposure log: the list shown, its user, version and propensities; and the feedback on it.

An answer may be sent once its row is durable: `write` returns then. A request id has one row, whatever is retried or
killed. Feedback names the request and the item, arrives when it likes, and counts once for each kind.

`Exposure` and `Feedback` decide what a row is, wherever it comes from: the service, a file, or the database. A value of
another type is refused and never converted, and so is a number that is not finite or a time outside 1970 to 2286.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Annotated, Literal, Protocol, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from adagrpo.lists.query import ItemId

FAILED = "failed"  # the source of a request of an experiment that got no list; its row has a name of its own
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
Moment = Annotated[float, Field(ge=0, lt=1e10)]  # seconds since 1970, UTC
RequestId = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]  # SQLite compares texts up to a NUL


class SinkFailed(RuntimeError):
    """A sink could not make rows durable; the message says what the disk said."""


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Exposure:
    """One answer: the list as it was shown, best first.

    `log_propensities` are of a list that was drawn, given that this request was one of those that draw: for each place
    the log-probability, in nats, that its item is drawn there after those above it. Their sum is the log-probability
    of the list. `log_inclusions` are, for each item, the log-probability that it is in the list at all, given the
    threshold of the draw; 1 over it is an unbiased weight. Both are None where nothing was drawn.

    Raises:
        ValueError: a value is no such value, a field has not one value for each item, a hash of a user is without its
            key, or an experiment without the hash of its plan.
    """

    request_id: RequestId
    time: Moment
    slate: Annotated[tuple[ItemId, ...], Field(strict=False)]  # ids of the logs
    arm: str
    model_version: str
    catalog_version: str
    user_hash: str | None = None  # keyed; None: the request named no user
    key_version: str | None = None  # fingerprint of that key
    history_hash: str | None = None  # keyed, of the history, length and filters that the request named
    experiment: str | None = None
    salt_version: str | None = None  # the first digits of the hash of the experiment's plan
    arm_version: str | None = None
    positions: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] | None, Field(strict=False)] = None
    source: str = "policy"  # what made the list: "policy", "fused", "sampled", "popular" ..
    temperature: float | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    log_propensities: Annotated[tuple[float, ...] | None, Field(strict=False)] = None
    log_inclusions: Annotated[tuple[float, ...] | None, Field(strict=False)] = None
    latency_ms: Annotated[float, Field(ge=0)] | None = None
    deal: str | None = None  # in an experiment: "arm", or why the user got the control, see `experiments.dealing`
    teams: Annotated[tuple[str, ...] | None, Field(strict=False)] = None  # of an interleaved list: whose item is where
    degraded: str | None = None  # why the list is not the one that the arm serves else; None: it is
    narrowed: bool | None = None  # whether the request itself said what may be in the list; None: not known

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
    """One action of a user on an item of a list; the first of each request, item and kind counts.

    Raises:
        ValueError: a value is no such value.
    """

    request_id: RequestId
    item: ItemId
    kind: str  # "click", "dwell", "purchase" ..
    time: Moment
    value: float = 1.0  # of a dwell its seconds


EXPOSURE_FIELDS = tuple(field.name for field in fields(Exposure))
FEEDBACK_FIELDS = tuple(field.name for field in fields(Feedback))
_EXPOSURE, _FEEDBACK = TypeAdapter(Exposure), TypeAdapter(Feedback)

RowT = TypeVar("RowT", Exposure, Feedback)

# of a row of feedback; "unknown" is stored too: no such request, or its list has no such item, as far as is remembered
Outcome = Literal["stored", "unknown", "repeated"]


class ExposureSink(Protocol):
    """A destination of exposures and feedback. All methods may be called by several threads at once."""

    def write(self, rows: Sequence[Exposure], together: Sequence[int] | None = None) -> list[Exposure]:
        """Put rows on record; they survive kill -9 and a loss of power once this returns.

        Args:
            rows: answers that are not sent yet. Callers that wait at the same time share one transaction.
            together: how many rows one body asked for, one body after the other; None: one each. Where a request id of
                a body is on record for another request, see `same_request`, none of its rows is written.

        Returns:
            For each the row that is on record under its request id: itself, or what was written under this id before.
            A retry is answered with the slate of that one.

        Raises:
            SinkFailed: nothing of `rows` may be taken as logged, so nothing of it may be sent.
        """
        ...

    def feedback(self, rows: Sequence[Feedback]) -> list[Outcome]:
        """Put feedback on record, durable when this returns; a request, item and kind that is there is not repeated.

        Returns:
            What became of each row.

        Raises:
            SinkFailed: nothing of `rows` may be taken as logged.
        """
        ...

    def close(self) -> None:
        """Finish what was begun; no other call comes after it."""
        ...


def same_request(one: Exposure, other: Exposure) -> bool:
    """Check whether two rows are of one user who asked for the same list."""
    return (one.user_hash, one.history_hash) == (other.user_hash, other.history_hash)


def encode(row: Exposure | Feedback) -> str:
    """A row as one line of JSON."""
    names = EXPOSURE_FIELDS if isinstance(row, Exposure) else FEEDBACK_FIELDS
    return json.dumps({name: getattr(row, name) for name in names}, separators=(",", ":"), allow_nan=False)


def decode_exposure(text: str | bytes) -> Exposure:
    """Decode an exposure.

    Raises:
        ValueError: the text is no row; the message names the field.
    """
    return _decoded(_EXPOSURE, text)


def decode(text: str | bytes) -> Exposure | Feedback:
    """Decode a row of either kind: feedback has a `kind`.

    Raises:
        ValueError: the text is neither; the message names the field.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("not a line of JSON") from error
    if isinstance(content, dict) and "kind" in content:
        return _decoded(_FEEDBACK, text)
    return decode_exposure(text)


def _decoded(adapter: TypeAdapter[RowT], text: str | bytes) -> RowT:
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        raise ValueError(why_refused(error)) from error


def why_refused(error: ValidationError) -> str:
    """The first thing that is wrong with a row, in one line and without its values, which may be of a user."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    said = str(first["msg"]).removeprefix("Value error, ")
    return f"{place}: {said}" if place else said
