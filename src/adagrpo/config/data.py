"""The section `data`: logs, their columns, and the split."""

from __future__ import annotations

from datetime import UTC, date, datetime
from os.path import normpath
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, TypeAdapter, model_validator

from adagrpo.config.section import Finite, NonNegativeFloat, Positive, PositiveFloat, Section, Share


def _date_as_text(value: Any) -> Any:
    """Convert a date, which YAML parses if unquoted, to ISO 8601."""
    if isinstance(value, date):  # a datetime is one
        return value.isoformat()
    if isinstance(value, str):
        try:
            datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(
                f"'{value}' is neither a number, in the unit of the timestamps, nor a date such as 2024-01-31"
            ) from None
    return value


Moment = Annotated[int | str, BeforeValidator(_date_as_text)]  # a number in the unit of the log, or a date


def _number_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


EventKind = Annotated[str, BeforeValidator(_number_as_text)]
EVENT_KINDS = TypeAdapter(Annotated[tuple[EventKind, ...], Field(min_length=1)])  # of an option


def seconds_of(text: str) -> float:
    """Convert an ISO 8601 date to seconds since 1970; UTC without an offset.

    >>> seconds_of("1970-01-02"), seconds_of("1970-01-01T01:00:01+01:00")
    (86400.0, 1.0)
    """
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


class Columns(Section):
    """Column names of the logs; null if absent.

    `basket` is the id of an order, whose lines are one event, see `SplitConfig`; with it, lines without a user are of
    guests and left out. Lines with a `quantity` of at most 0 are returns and left out.

    `clicked` marks a log of impressions: 1 is shown and chosen, also an interaction; 0 only shown; empty an interaction
    without an impression.
    """

    user: str = "user_id"
    item: str = "item_id"
    timestamp: str | None = None
    order: str | None = None
    basket: str | None = None
    quantity: str | None = None
    event: str | None = None
    rating: str | None = None
    clicked: str | None = None
    slot: str | None = None
    propensity: str | None = None


class ItemTable(Section):
    """The item table. Columns in `groups` are not seen by models; scalar attribute columns may be listed there too."""

    path: str
    id_column: str = "item_id"
    text: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    groups: tuple[Annotated[str, Field(pattern="^[^=]+$")], ...] = ()
    attribute_names: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_no_path_alone(cls, content: Any) -> Any:
        if isinstance(content, str):
            raise ValueError(f"is a path alone; write {{path: {content}, id_column: NAME, text: [NAME]}}")
        return content


class SplitConfig(Section):
    """Evaluation split.

    With `baskets` a case is the whole next basket: the lines of one order (`columns.basket`), or else of one time.
    With `impressions` histories are unordered sets, and there is no policy. With `users`, leave-one-out trains on full
    histories of the others.
    """

    kind: Literal["leave_one_out", "temporal", "impressions"] = "leave_one_out"
    validation_from: Moment | None = None
    test_from: Moment | None = None
    held_out: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    users: Positive | None = None
    baskets: bool = False

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind != "temporal":
            return self
        if self.validation_from is None or self.test_from is None:
            raise ValueError(
                "a temporal split needs validation_from and test_from, dates or numbers in the unit of the timestamps"
            )
        points = self.validation_from, self.test_from
        if isinstance(points[0], str) != isinstance(points[1], str):
            raise ValueError("validation_from and test_from have to be two dates or two numbers")
        first, second = (seconds_of(point) if isinstance(point, str) else point for point in points)
        if first >= second:
            raise ValueError(f"validation_from ({self.validation_from}) must be before test_from ({self.test_from})")
        return self


class MarketplaceConfig(Section):
    """Parameters of the simulated marketplace, see `adagrpo.data.simulation.marketplace`."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    users: Positive | None = None
    items: Positive | None = None
    categories: Positive | None = None
    styles: Positive | None = None
    steps: PositiveFloat | None = None
    exposure_bias: NonNegativeFloat | None = None
    position_bias: NonNegativeFloat | None = None
    targeting: NonNegativeFloat | None = None
    targeting_error: NonNegativeFloat | None = None
    noise: NonNegativeFloat | None = None
    drift: NonNegativeFloat | None = None
    cold_share: Share | None = None
    later_share: Share | None = None
    satiation: NonNegativeFloat | None = None
    dwell_seconds: NonNegativeFloat | None = None


class TieConfig(Section):
    """Shuffle tied interactions: equal timestamps, or ascending runs of an item column."""

    sorted_by: str | None = None


class RefuseConfig(Section):
    """Readable rows to count as bad. `after` is in the unit of the logs; `repeats` compares all columns read."""

    unknown_items: bool = False
    after: NonNegativeFloat | None = None
    repeats: bool = False


class ImpressionsConfig(Section):
    """Logs of what was shown, one row per item; keys as in `data`.

    Under `impressions` rankers learn from them, and clicks are not interactions. Under `random` they only evaluate.
    """

    logs: Annotated[tuple[str, ...], Field(min_length=1)]
    columns: Columns = Columns()
    keep_events: tuple[EventKind, ...] | None = None
    click_rating: Finite | None = None


class ExposuresConfig(Section):
    """An exposure log of `adagrpo serve`, see `adagrpo.data.exposures`; `user_key_file` is only read."""

    path: str
    clicks: Annotated[tuple[str, ...], Field(min_length=1)] = ("click", "purchase")
    within_seconds: PositiveFloat | None = None
    only_sampled: bool = False
    through: Positive | None = None
    user_key_file: str | None = None


class DataConfig(Section):
    """Source of the logs, and their split.

    Policies learn from the interactions of `logs`, rankers from impressions if there are any. `drop_items` are ids that
    are no items, such as postage.
    """

    not_of_the_result: ClassVar[frozenset[str]] = frozenset({"max_expansion"})  # whether a file is read

    logs: tuple[str, ...] = ()
    marketplace: MarketplaceConfig | None = None
    exposures: ExposuresConfig | None = None
    impressions: ImpressionsConfig | None = None
    columns: Columns = Columns()
    items: ItemTable | None = None
    keep_events: tuple[EventKind, ...] | None = None
    min_rating: Finite | None = None
    click_rating: Finite | None = None
    random: ImpressionsConfig | None = None
    min_user_interactions: Positive = 1
    min_item_interactions: Positive = 1
    keep_unseen_items: bool = False
    max_bad_rows: Annotated[int, Field(ge=0)] = 0
    max_expansion: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 100
    refuse: RefuseConfig = RefuseConfig()
    drop_duplicates: bool = False
    drop_items: tuple[str, ...] = ()
    split: SplitConfig = SplitConfig()
    shuffle_ties: TieConfig | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        alone = self.exposures is not None and not self.logs
        if bool(self.logs) + (self.marketplace is not None) + alone != 1:
            raise ValueError("give either logs or marketplace or exposures; exposures may stand beside logs")
        if self.impressions is not None and not self.logs:
            raise ValueError("impressions stand beside logs, whose users they were shown to; give logs")
        if (self.impressions is not None or (self.exposures is not None and not alone)) and (
            self.split.kind == "impressions"
        ):
            raise ValueError("split.kind: impressions is for logs that are impressions; give them as logs alone")
        named = [*self.logs, *(self.impressions.logs if self.impressions is not None else ())]
        files = [normpath(path) for path in named]
        if twice := [path for path, file in zip(named, files, strict=True) if files.count(file) > 1]:
            raise ValueError(f"logs: '{twice[0]}' is named twice, and its rows would count twice; name it once")
        if self.shuffle_ties and self.shuffle_ties.sorted_by and self.items is None:
            raise ValueError("shuffle_ties.sorted_by is a column of the item table; give items")
        if self.shuffle_ties and self.shuffle_ties.sorted_by and self.split.kind == "temporal":
            raise ValueError(
                "shuffle_ties.sorted_by is for logs without times, of which a run holds several; a temporal split has"
                " times, and equal ones are ties: write shuffle_ties: {}"
            )
        if self.keep_unseen_items and self.items is None and self.marketplace is None:
            raise ValueError("keep_unseen_items keeps the items of the item table; give items")
        if self.refuse.unknown_items and self.items is None and self.marketplace is None:
            raise ValueError("refuse.unknown_items looks into the item table; give items")
        return self
