"""Schemas of requests and answers. Error messages never repeat values of a request."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError, model_validator
from pydantic_core import PydanticCustomError, from_json

ModelT = TypeVar("ModelT", bound=BaseModel)

LONGEST_HISTORY = 10_000  # ids per request
LONGEST_BATCH = 64  # requests per body
MOST_VALUES = 32_000  # per body: one request with all its lists full, or 64 with 500 values each
MOST_GROUPS = 16  # per filter; also the most fields of any object


def _few_fields(content: Any) -> Any:
    if isinstance(content, dict) and len(content) > MOST_GROUPS:
        raise PydanticCustomError("too_many_fields", f"has {len(content)} fields, more than {MOST_GROUPS}")
    return content


IntegerId = Annotated[int, Strict(), Field(ge=-(2**63), lt=2**63)]
TextId = Annotated[str, Strict(), Field(max_length=1000)]
Id = IntegerId | TextId
RequestId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,64}$")]
# fail_fast: describing 30,000 invalid values takes half a second
History = Annotated[list[Id], Field(max_length=LONGEST_HISTORY, fail_fast=True)]
Times = Annotated[list[Annotated[float, Field(ge=0, le=1e11)]], Field(max_length=LONGEST_HISTORY, fail_fast=True)]
GroupValue = Annotated[bool, Strict()] | Id
Column = Annotated[str, Field(max_length=200)]
Values = GroupValue | Annotated[list[GroupValue], Field(max_length=1000, fail_fast=True)]
Groups = Annotated[dict[Column, Values], Field(max_length=MOST_GROUPS), BeforeValidator(_few_fields)]
Filter = History | Groups
Scores = Annotated[
    list[float | None],
    Field(
        description="Log-probabilities, nats; re-ranked, plus weight times reward over spread; null for a pinned item "
        "that the list did not hold."
    ),
]
TAG = re.compile(r"int|str|bool|constrained-.*|list\[.*|dict\[.*|function-.*")  # pydantic's names of union members
PLAIN = re.compile(r"[a-z_]{1,32}")  # field names that a message may repeat


class BadRequest(ValueError):
    """Raised with the reason a request cannot be answered."""

    def __init__(self, reason: str, status: int = 422) -> None:
        super().__init__(reason)
        self.status = status


class Body(BaseModel):
    """A body, or an object in one; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, content: Any) -> Any:
        return _few_fields(content)


class RecommendRequest(Body):
    """The body of `POST /recommend`."""

    history: Annotated[History, Field(min_length=1)]
    k: Annotated[int, Strict(), Field(ge=1)] = 10
    exclude_history: bool | None = None  # as /health says


class RecommendBody(Body):
    """One request of `POST /v1/recommend`."""

    history: History = Field(description="Ids of the logs, oldest first.")
    k: Annotated[int, Strict(), Field(ge=1)] = Field(
        10, description="Length of the list; at most the width of the beam."
    )
    exclude_history: bool | None = Field(None, description="Leave the items of the history out; as /health says.")
    times: Times | None = Field(
        None, description="When each item of the history was had: seconds since 1970; items of one time are one basket."
    )
    now: Annotated[float, Field(ge=0, le=1e11)] | None = Field(
        None, description="Seconds since 1970; the clock of the service if not given."
    )
    shown: History = Field(
        default_factory=list, description="What the user was shown of late, for the rule shown_within_days."
    )
    shown_times: Times | None = Field(None, description="When: seconds since 1970; all within its days if not given.")
    include: Filter | None = Field(None, description="What the list may hold: ids, or groups of the item table.")
    exclude: Filter | None = Field(None, description="What it may not hold: ids, or groups of the item table.")
    user_id: Id | None = Field(None, description="For lists that know users; logged as a keyed hash alone.")
    request_id: RequestId | None = Field(None, description="Names the answer in feedback; made if not given.")
    explain: Annotated[bool, Strict()] = Field(False, description="Say why each item is in the list.")

    @model_validator(mode="after")
    def _one_time_each(self) -> Self:
        for name, times, of, items in (
            ("times", self.times, "history", self.history),
            ("shown_times", self.shown_times, "shown", self.shown),
        ):
            if times is not None and len(times) != len(items):
                raise PydanticCustomError("times", f"{name} holds {len(times)} for {len(items)} items of {of}")
        if self.times is not None and any(later < earlier for earlier, later in pairwise(self.times)):
            raise PydanticCustomError("times", "times must ascend: a history is oldest first")
        return self


class BatchBody(Body):
    """Several requests of `POST /v1/recommend` in one."""

    requests: Annotated[list[RecommendBody], Field(min_length=1, max_length=LONGEST_BATCH, fail_fast=True)]


class Versions(BaseModel):
    """Versions of what made a list."""

    model: str
    catalog: str
    arm: str


class InExperiment(BaseModel):
    """The experiment that an answer belongs to."""

    name: str
    plan: str = Field(description="First digits of the hash of its plan.")
    arm: str = Field(description="Of the plan, whose list it is.")
    deal: str = Field(
        description="`arm`, the user's own; else the control, as the user is `outside` of it or `held out`, or the "
        "user's arm was `stopped`."
    )


class Reason(BaseModel):
    """Why an item is in a list."""

    sources: list[str] = Field(description="What proposed it: the policy and other sources of a fused list.")
    features: dict[str, float] = Field(
        description="Each feature's part of the score less its mean over the list; `correction` is the network's."
    )
    history: dict[str, list[int | str]] = Field(description="Items of the history that led to it, by source.")
    rules: list[str] = Field(description="Rules without which it would stand at another rank.")
    rank_without_rules: int | None = Field(description="From 1; null where it would not be in the list, or no rules.")


class RecommendAnswer(BaseModel):
    """The list of one request."""

    request_id: str
    items: list[int | str]
    scores: Scores
    codes: list[list[int]] = Field(
        description="The Semantic ID of each item; none in a repeated list of another catalogue."
    )
    source: str = Field(
        description="What made the list: `policy`, re-ranked or not; `fused`, the policy and other sources; `alone`, a "
        "source or a reward without the policy; `sampled`, drawn; or `popular`, nothing is known."
    )
    reranked: bool = Field(description="Whether a reward ordered the list; false where it failed or there is none.")
    degraded: str | None = Field(
        None, description="Why this is not the list that is served otherwise: the reward gave no scores; else null."
    )
    repeated: bool = Field(description="Whether this request id was answered before; the list is that one.")
    short: str | None = Field(description="Why the list is shorter than was asked for.")
    unknown: list[int | str] = Field(description="Ids of the history that are not in the catalogue.")
    versions: Versions
    experiment: InExperiment | None = Field(None, description="Absent where the answer is of none.")
    reasons: list[Reason] | None = Field(
        None,
        description="Of each item, where `explain` asks; null where the list is a repeated one, or no time was left.",
    )


class BatchAnswer(BaseModel):
    """The lists of a batch, in the order of its requests."""

    responses: list[RecommendAnswer]


class ListAnswer(BaseModel):
    """The answer of `POST /recommend`."""

    items: list[int | str]
    scores: Scores
    unknown: list[int | str] = Field(description="Ids of the history that are not in the catalogue.")
    degraded: str | None = Field(None, description="Why this is not the usual list; absent where it is.")


class FeedbackEvent(Body):
    """One action of a user on an item of a list."""

    request_id: RequestId
    item_id: Id
    kind: Literal["click", "dwell", "purchase"]
    value: Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)] | None = Field(
        None, description="Seconds of a dwell, price of a purchase."
    )
    time: Annotated[float, Field(ge=0, lt=1e10)] | None = Field(
        None, description="Seconds since 1970; now if not given."
    )


class FeedbackBody(Body):
    """The body of `POST /v1/feedback`. Sent twice, it counts once."""

    events: Annotated[list[FeedbackEvent], Field(min_length=1, max_length=1000, fail_fast=True)]


class FeedbackAnswer(BaseModel):
    """Counts of the events that were received."""

    accepted: int
    duplicates: int = Field(description="The same request, item and kind was there already.")
    unknown: int = Field(description="Of those accepted: no such request is remembered, or no such item in its list.")


class ItemAnswer(BaseModel):
    """An item of the catalogue."""

    item_id: int | str
    codes: list[int]
    listed: bool = Field(description="Whether lists may hold it; false once it was delisted.")
    catalog: str


class StatusAnswer(BaseModel):
    """State of a process."""

    status: str = Field(description="`ok`, or what it does instead.")


class HealthAnswer(StatusAnswer):
    """The model that is served."""

    degraded: str | None = Field(None, description="Why lists come without the reward now; absent where they do not.")
    exposure_log: str | None = Field(
        None, description="Why the log could not be written the last time; absent where it could. Lists then get 503."
    )
    name: str | None = Field(None, description="Of the recipe.")
    arm: str | None = None
    why: str | None = Field(None, description="Why that arm.")
    refit: bool | None = Field(None, description="Whether it is fitted on all interactions; else it is as measured.")
    refresh: int | None = Field(None, description="Which refresh it is of; 0: none.")
    arms: list[str] | None = Field(None, description="All that the run has.")
    checkpoint: Literal["best", "final"] | None = None
    step: int | None = None
    items: int | None = Field(None, description="Of the catalogue.")
    listed: int | None = Field(None, description="Of them, those that lists may hold.")
    catalog_version: str | None = None
    reward_weight: float | None = Field(None, description="In spreads of the reward; 0 where no reward re-ranks.")
    reward_spread: float | None = Field(None, description="Of the reward that re-ranks.")
    rules: list[str] | None = Field(None, description="The rules that lists follow; absent where there are none.")
    exclude_history: bool | None = Field(
        None, description="Whether lists leave the history out where a request does not say."
    )
    precision: Literal["float32", "bfloat16"] | None = None
    versions: Versions | None = None
    explore: dict[str, float] | None = Field(None, description="Which share of the lists is drawn, and how.")
    experiment: dict[str, Any] | None = Field(None, description="How the experiment stands that is served.")


class Refusal(BaseModel):
    """The reason why a request was refused."""

    detail: str


class ReloadBody(Body):
    """The body of `POST /v1/admin/reload`: another checkpoint of the same run, or its current files."""

    arm: Annotated[str, Field(max_length=100)] | None = None
    checkpoint: Literal["best", "final"] | None = None
    catalog: Annotated[str, Field(max_length=100)] | None = Field(None, description="A version, or `latest`.")


class SwitchBody(Body):
    """The body of `POST /v1/admin/experiment`: one of the two fields."""

    share: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="Of the users, from now on.")
    stop: Annotated[str, Field(max_length=100)] | None = Field(None, description="An arm whose users get the control.")


def parsed(body: bytes) -> Any:
    """Parse a JSON text; `BadRequest` for invalid JSON, such as NaN, or more than `MOST_VALUES` values."""
    if body.count(b",") > MOST_VALUES:  # before parsing; counts commas in texts too
        raise BadRequest(f"the body holds more than {MOST_VALUES:,} values")
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        where = re.search(r"at line \d+ column \d+$", str(error))
        what = str(error)[: where.start()].strip() if where else ""
        what = what if re.fullmatch(r"[a-zA-Z ]{1,60}", what) else "it cannot be read"
        raise BadRequest(f"the body is no JSON: {what} {where.group() if where else ''}".strip()) from None


def validated(kind: type[ModelT], content: Any) -> ModelT:
    """Validate content by a schema; `BadRequest` names the first invalid field."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    known = [part for part in first["loc"] if not (isinstance(part, str) and TAG.fullmatch(part))]
    names = [str(part) if isinstance(part, int) or PLAIN.fullmatch(part) else "(a field)" for part in known]
    field, message = ".".join(names) or "the body", first["msg"]
    if first["type"] == "list_type" and names[-1:] in (["include"], ["exclude"]):
        message = "should be item ids, or values by group"
    elif first["type"] == "extra_forbidden":
        elsewhere = kind is RecommendRequest and field in RecommendBody.model_fields
        message = "/recommend has no such field; POST /v1/recommend has" if elsewhere else "there is no such field"
    elif not re.fullmatch(r"[A-Za-z0-9 ,.'_$^|:;\[\]{}()\\+-]{1,160}", message):
        message = "not what it should be"
    raise BadRequest(f"{field}: {message}")
