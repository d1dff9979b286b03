"""What was shown, to whom, by which version and with what probability; and what came of it.

An answer may be sent once its row is durable: `write` returns then. A request id has one row, whatever is retried or
killed. Feedback names the request and the item, arrives when it likes, and counts once for each kind.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol

from adagrpo.serving.recommender import ItemId

__all__ = [
    "FAILED",
    "Exposure",
    "ExposureSink",
    "Feedback",
    "FeedbackCounts",
    "SinkFailed",
    "decode_exposure",
    "decode_feedback",
    "encode",
]


FAILED = "failed"  # the source of a request of an experiment that got no list; its row has a name of its own


class SinkFailed(RuntimeError):
    """A sink could not make rows durable; the message says what the disk or the broker said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """One answer: the list as it was shown, best first.

    `log_propensities` are of a list that was drawn, given that this request was one of those that draw: for each place
    the log-probability, in nats, that its item is drawn there after those above it. Their sum is the log-probability
    of the list. `log_inclusions` are, for each item, the log-probability that it is in the list at all, given the
    threshold of the draw; 1 over it is an unbiased weight. Both are None where nothing was drawn.
    """

    request_id: str
    time: float  # seconds since 1970, UTC
    slate: tuple[ItemId, ...]  # ids of the logs
    arm: str
    model_version: str
    catalog_version: str
    user_hash: str | None = None  # keyed; None: the request named no user
    experiment: str | None = None
    salt_version: str | None = None
    arm_version: str | None = None
    positions: tuple[int, ...] | None = None  # 0 is the top; None: 0, 1, 2 ..
    source: str = "policy"  # what made the list: "policy", "sampled", "popular" ..
    temperature: float | None = None
    seed: int | None = None
    log_propensities: tuple[float, ...] | None = None
    log_inclusions: tuple[float, ...] | None = None
    latency_ms: float | None = None
    deal: str | None = None  # in an experiment: "arm", or why the user got the control, see `experiments.dealing`
    teams: tuple[str, ...] | None = None  # of a list that two arms made together: whose item is at each place
    narrowed: bool | None = None  # whether the request itself said what may be in the list; None: not known

    def __post_init__(self) -> None:
        """Refuse a row that no sink could store.

        Raises:
            ValueError: a text is no Unicode, a number is not finite, or a field has not one value for each item.
        """
        if self.teams is not None and len(self.teams) != len(self.slate):
            raise ValueError(f"Exposure: teams has {len(self.teams)} values, the slate {len(self.slate)} items")
        texts = (self.request_id, self.user_hash, self.arm, *(item for item in self.slate if isinstance(item, str)))
        _check_texts("Exposure", *texts)
        for name in ("positions", "log_propensities", "log_inclusions"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.slate):
                raise ValueError(f"Exposure: {name} has {len(values)} values, the slate {len(self.slate)} items")
            if values is not None and not all(map(math.isfinite, values)):
                raise ValueError(f"Exposure: {name} holds a value that is not finite")


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """What a user did with an item of a list; the first of each request, item and kind counts."""

    request_id: str
    item: ItemId
    kind: str  # "click", "dwell", "purchase" ..
    time: float  # seconds since 1970, UTC
    value: float = 1.0  # of a dwell its seconds

    def __post_init__(self) -> None:
        """Refuse a row that no sink could store.

        Raises:
            ValueError: a text is no Unicode, or a number is not finite.
        """
        _check_texts("Feedback", self.request_id, str(self.item), self.kind)
        if not (math.isfinite(self.time) and math.isfinite(self.value)):
            raise ValueError("Feedback: time or value is not finite")


EXPOSURE_FIELDS = tuple(field.name for field in fields(Exposure))
ADDED = ("deal", "teams", "narrowed")  # rows that were written before these were there have none
FEEDBACK_FIELDS = tuple(field.name for field in fields(Feedback))


class FeedbackCounts(NamedTuple):
    """What became of the rows that `feedback` was given."""

    stored: int
    repeated: int  # the same request, item and kind is on record
    unknown: int  # of those stored: no such request, or its list has no such item, as far as the sink remembers


class ExposureSink(Protocol):
    """Where exposures and feedback go. All methods may be called by several threads at once."""

    def write(self, rows: Sequence[Exposure]) -> list[Exposure]:
        """Put rows on record; they survive kill -9 and a loss of power once this returns.

        Args:
            rows: answers that are not sent yet. Callers that wait at the same time share one transaction.

        Returns:
            For each the row that is on record under its request id: itself, or what was written under this id before.
            A retry is answered with the slate of that one. A sink that cannot look back returns what it was given.

        Raises:
            SinkFailed: nothing of `rows` may be taken as logged, so nothing of it may be sent.
        """
        ...

    def feedback(self, rows: Sequence[Feedback]) -> FeedbackCounts:
        """Put feedback on record, durable when this returns; rows that are there already are counted, not repeated.

        Raises:
            SinkFailed: nothing of `rows` may be taken as logged.
        """
        ...

    def close(self) -> None:
        """Finish what was begun; no other call comes after it."""
        ...


def encode(row: Exposure | Feedback) -> str:
    """A row as one line of JSON.

    Raises:
        ValueError: a number is not finite.
    """
    names = EXPOSURE_FIELDS if isinstance(row, Exposure) else FEEDBACK_FIELDS
    return json.dumps({name: getattr(row, name) for name in names}, separators=(",", ":"), allow_nan=False)


def decode_exposure(text: str | bytes) -> Exposure:
    """What `encode` was given.

    Raises:
        ValueError: the text is no row.
    """
    content = _content(text, EXPOSURE_FIELDS, optional=ADDED)
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in content.items()}
    return Exposure(**values)


def decode_feedback(text: str | bytes) -> Feedback:
    """What `encode` was given.

    Raises:
        ValueError: the text is no row.
    """
    return Feedback(**_content(text, FEEDBACK_FIELDS))


def _content(text: str | bytes, names: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(text)
    if not isinstance(content, dict) or not {*names} - {*optional} <= {*content} <= {*names}:
        raise ValueError(f"no row of {', '.join(names)}")
    return content


def _check_texts(what: str, *texts: str | None) -> None:
    for text in texts:
        try:
            (text or "").encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{what}: a text holds half of a surrogate pair, which is no Unicode") from error
