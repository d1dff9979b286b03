"""The section `reward`, discriminated by `kind`; see `docs/how-to/own-reward.md`.

Paths are below `--data`; modules are imported from the recipe's folder first.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from adagrpo.config.section import Finite, Positive, PositiveFloat, Section

CountName = Literal[
    "popularity",
    "popularity_gap",
    "age",
    "repeats",
    "knn_last",
    "knn_history",
    "knn_best",
    "next_last",
    "attributes_last",
    "attributes_history",
    "text_last",
    "text_history",
]


def _module_function(value: str) -> str:
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", value):
        raise ValueError(f"'{value}' is not of the form module:function")
    return value


class _Options(Section):
    kind: str
    tags: ClassVar[frozenset[str]] = frozenset({"kind"})
    beside: ClassVar[frozenset[str]] = frozenset()  # keys of other sections that influence the scores
    elsewhere: ClassVar[bool] = False  # may be fitted on more than the run's training interactions

    @property
    def read_beside(self) -> frozenset[str]:
        """Keys of other sections that influence the scores."""
        return self.beside.union(*(part.read_beside for part in self.parts))

    @property
    def parts(self) -> tuple[RewardOptions, ...]:
        """Member rewards."""
        members: tuple[RewardOptions, ...] = getattr(self, "members", ())
        return members

    def holds(self, kind: str) -> bool:
        """Return whether it or a member is of a kind."""
        return self.kind == kind or any(part.holds(kind) for part in self.parts)

    @property
    def is_made_elsewhere(self) -> bool:
        """True if it may be fitted on more than the run's training interactions."""
        return self.elsewhere or any(part.is_made_elsewhere for part in self.parts)

    @property
    def in_list_stds(self) -> bool:
        """True for a sum of members in units of their within-list standard deviation."""
        return False

    def identity(self) -> dict[str, Any]:
        """Return the options that determine the scores, JSON-able."""
        content = self.model_dump(mode="json", exclude=set(self.not_of_the_result))
        return content | ({"members": [part.identity() for part in self.parts]} if self.parts else {})


class SequentialOptions(_Options):
    """The run's sequential ranker, or a checkpoint of another run on the same data."""

    kind: Literal["sequential"] = "sequential"
    checkpoint: str | None = None

    @property
    def read_beside(self) -> frozenset[str]:
        """Heads of another run's checkpoint, whose weights fit any number of them."""
        return frozenset() if self.checkpoint is None else frozenset({"ranker.heads"})

    @property
    def is_made_elsewhere(self) -> bool:
        """True for another run, which may have another split."""
        return self.checkpoint is not None


class CallableOptions(_Options):
    """A Python function `module:function` fitted on training data only, see `adagrpo.rewards.callable`."""

    elsewhere = True
    kind: Literal["callable"] = "callable"
    function: str
    files: tuple[str, ...] = ()

    _named = field_validator("function")(_module_function)


class FactoryOptions(_Options):
    """A Python function that creates an `adagrpo.rewards.Reward` for the run.

    Called as `function(models, members, **options)`, see `adagrpo.pipeline.factories`. It may be fitted on
    `models.training_logs` only.
    """

    beside = frozenset({"policy", "ranker.user_share"})  # what it may read of the run besides its files
    elsewhere = True
    kind: Literal["factory"] = "factory"
    function: str
    members: tuple[RewardOptions, ...] = ()
    options: dict[str, Any] = Field({})
    files: tuple[str, ...] = ()

    _named = field_validator("function")(_module_function)


class HttpOptions(_Options):
    """A batched endpoint, see `adagrpo.rewards.http`. Change `version` with the model: it cannot be hashed."""

    not_of_the_result: ClassVar[frozenset[str]] = frozenset(
        {"batch_size", "concurrency", "timeout_seconds", "retries", "backoff_seconds", "token_env"}
    )

    elsewhere = True
    kind: Literal["http"] = "http"
    url: str
    version: str = ""
    batch_size: Positive = 64
    concurrency: Annotated[int, Field(ge=1, le=64)] = 4
    timeout_seconds: PositiveFloat = 10.0
    retries: Annotated[int, Field(ge=0, le=20)] = 4
    backoff_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    token_env: str | None = None

    @field_validator("url")
    @classmethod
    def _plain_http(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"'{url}' is not of the form http://host/path or https://host/path")
        if parts.username is not None:
            raise ValueError("holds a user name or password, which would be written to run.yaml; use token_env")
        _ = parts.port  # a ValueError of its own where it is no number
        return url


class ModelFileOptions(_Options):
    """A model file over the item table, a table of users and `adagrpo.rewards.features`.

    `users` is a table with the user column of the logs.
    """

    elsewhere = True
    model: str
    users: str | None = None

    def identity(self) -> dict[str, Any]:
        """See `_Options.identity`; without a table of users as in earlier versions."""
        return {name: value for name, value in super().identity().items() if name != "users" or value is not None}


class LightGBMOptions(ModelFileOptions):
    """A LightGBM model in text format."""

    kind: Literal["lightgbm"] = "lightgbm"


class XGBoostOptions(ModelFileOptions):
    """An XGBoost model, `.json` or `.ubj`."""

    kind: Literal["xgboost"] = "xgboost"


class CatBoostOptions(ModelFileOptions):
    """A CatBoost model, `.cbm`."""

    kind: Literal["catboost"] = "catboost"


class LambdaRankOptions(_Options):
    """The LambdaRank model of the stage `ranker`; see `adagrpo.trainer.lambdarank`."""

    kind: Literal["lambdarank"] = "lambdarank"


class NoiseOptions(_Options):
    """Random reward, see `adagrpo.rewards.noise`: a control, or noise in a weighted sum."""

    kind: Literal["noise"] = "noise"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0


class FeatureOptions(_Options):
    """A count of `adagrpo.rewards.features`: `knn_history` is item-kNN, `popularity` popularity."""

    beside = frozenset({"ranker.user_share"})  # whose interactions are counted
    kind: Literal["feature"] = "feature"
    name: CountName = "knn_history"


class WeightedOptions(_Options):
    """A weighted sum of rewards; weights may be negative.

    Without weights each member is divided by its within-list standard deviation, measured by the stage `reranking`.
    """

    kind: Literal["weighted"] = "weighted"
    members: Annotated[tuple[RewardOptions, ...], Field(min_length=1)]
    weights: tuple[Finite, ...] | None = None

    @property
    def in_list_stds(self) -> bool:
        """True if no weights are given."""
        return self.weights is None

    @model_validator(mode="after")
    def _one_weight_each(self) -> Self:
        if self.weights is not None and len(self.weights) != len(self.members):
            raise ValueError(f"{len(self.weights)} weights for {len(self.members)} members; give one each")
        return self


def reward_name(options: RewardOptions) -> str:
    """Return the display name of a reward: its function, address or kind."""
    match options:
        case CallableOptions() | FactoryOptions():
            return options.function
        case HttpOptions():
            return options.url
        case _:
            return options.kind


def _kind(value: Any) -> Any:
    return value.get("kind", "sequential") if isinstance(value, dict) else getattr(value, "kind", None)


def _is_section(value: Any) -> Any:
    if isinstance(value, str | int | float | list):
        raise ValueError(f"is a section; write {{kind: {value if isinstance(value, str) else 'lambdarank'}}}")
    return value


RewardOptions = Annotated[
    Annotated[SequentialOptions, Tag("sequential")]
    | Annotated[CallableOptions, Tag("callable")]
    | Annotated[FactoryOptions, Tag("factory")]
    | Annotated[HttpOptions, Tag("http")]
    | Annotated[LightGBMOptions, Tag("lightgbm")]
    | Annotated[XGBoostOptions, Tag("xgboost")]
    | Annotated[CatBoostOptions, Tag("catboost")]
    | Annotated[LambdaRankOptions, Tag("lambdarank")]
    | Annotated[NoiseOptions, Tag("noise")]
    | Annotated[FeatureOptions, Tag("feature")]
    | Annotated[WeightedOptions, Tag("weighted")],
    Discriminator(_kind),
    BeforeValidator(_is_section),
]

REWARD_KINDS = {one.__metadata__[0].tag: get_args(one)[0] for one in get_args(get_args(RewardOptions)[0])}

FactoryOptions.model_rebuild()
WeightedOptions.model_rebuild()
