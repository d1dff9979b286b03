"""The configuration of a run: frozen models that refuse unknown keys, YAML in and out, `--set a.b=c`.

Names are those of the field (`num_generations`, `beta`, `epsilon`, `epsilon_high`, `num_iterations`); a section is read
by the stage of the same name, and a change in one section makes only the stages that read it run again.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from adagrpo.errors import UserError
from adagrpo.reward_options import RewardOptions, SequentialOptions

__all__ = ["ArmConfig", "CompareConfig", "Config", "dump_config", "load_config"]

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]

Gate = Literal["adagrpo", "all", "none", "difficulty", "discriminability", "random", "shuffled", "inverted", "oracle"]
UserMetric = Literal["hr@1", "hr@5", "hr@10", "hr@50", "ndcg@10", "hallucination@10"]


class Section(BaseModel):
    """A part of the configuration: immutable, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Columns(Section):
    """What the columns of the logs are called; null where the logs have no such column."""

    user: str = "user_id"
    item: str = "item_id"
    timestamp: str | None = None
    order: str | None = None
    event: str | None = None
    rating: str | None = None
    clicked: str | None = None
    slot: str | None = None
    propensity: str | None = None


class ItemTable(Section):
    """The item table: text columns are joined, attribute columns may be lists or scalars."""

    path: str
    id_column: str = "item_id"
    text: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    attribute_names: str | None = None


class SplitConfig(Section):
    """Leave-one-out (last item test, second last validation), or two points in time."""

    kind: Literal["leave_one_out", "temporal"] = "leave_one_out"
    validation_from: int | None = None
    test_from: int | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind == "temporal" and (self.validation_from is None or self.test_from is None):
            raise ValueError("a temporal split needs validation_from and test_from, in the unit of the timestamps")
        return self


class MarketplaceConfig(Section):
    """The simulated marketplace, see `adagrpo.data.marketplace.Marketplace`; null takes that class's default."""

    users: Positive | None = None
    items: Positive | None = None
    steps: PositiveFloat | None = None
    exposure_bias: NonNegativeFloat | None = None
    position_bias: NonNegativeFloat | None = None
    targeting: NonNegativeFloat | None = None
    targeting_error: NonNegativeFloat | None = None
    noise: NonNegativeFloat | None = None
    drift: NonNegativeFloat | None = None
    cold_share: Share | None = None


class TieConfig(Section):
    """Put tied interactions into random order: those of equal timestamps, or ascending runs of an item column."""

    sorted_by: str | None = None


class DataConfig(Section):
    """Where the logs come from and how they are cut. Relative paths are below `--data`."""

    logs: tuple[str, ...] = ()
    marketplace: MarketplaceConfig | None = None
    columns: Columns = Columns()
    items: ItemTable | None = None
    keep_events: tuple[str, ...] | None = None
    min_rating: float | None = None
    min_user_interactions: Positive = 1
    min_item_interactions: Positive = 1
    max_bad_rows: Annotated[int, Field(ge=0)] = 0
    split: SplitConfig = SplitConfig()
    shuffle_ties: TieConfig | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.logs) == (self.marketplace is not None):
            raise ValueError("give either logs or marketplace")
        if self.shuffle_ties and self.shuffle_ties.sorted_by and self.items is None:
            raise ValueError("shuffle_ties.sorted_by is a column of the item table; give items")
        return self


class PublishedIds(Section):
    """Semantic IDs made elsewhere: a Parquet file with one list of codes an item."""

    path: str
    column: str
    id_column: str = "item_id"


class RqVaeConfig(Section):
    """The RQ-VAE of `tokenizer.quantizer: rq_vae`; see `adagrpo.semantic_ids.rq_vae`."""

    epochs: Positive = 100
    batch_size: Positive = 256
    learning_rate: PositiveFloat = 3e-3
    hidden: Positive = 256
    width: Positive = 64
    commitment: NonNegativeFloat = 0.25


class TokenizerConfig(Section):
    """Item vectors and their residual quantisation; see `docs/tokenizers.md` for what each choice is worth.

    `vectors` weighs the kinds of item vectors; `language_model` is the folder of the sentence-transformers model of the
    vectors of that name (null: the one that the extra `text` brings). `cluster_bound` is for `balanced_kmeans`: no code
    of a level has more than that multiple of V / K items. Items on the same codes are told apart by one more `level`,
    or each goes to the `nearest` free code of its last level.
    """

    vectors: dict[Literal["attributes", "text", "cooccurrence", "language_model"], PositiveFloat] = {
        "cooccurrence": 1.0
    }
    language_model: str | None = None
    width: Positive = 128
    window: Positive = 3
    quantizer: Literal["kmeans", "balanced_kmeans", "rq_vae"] = "kmeans"
    levels: Positive = 3
    codes: Annotated[int, Field(ge=2)] = 256
    cluster_bound: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.1
    rq_vae: RqVaeConfig = RqVaeConfig()
    collisions: Literal["level", "nearest"] = "level"
    published: PublishedIds | None = None


class LanguageModelConfig(Section):
    """A Hugging Face causal LM: from a configuration, with random weights, or from a local folder below `--data`.

    `config` holds `model_type` (qwen3, llama, gpt2, ..) and keys of that type. Embeddings and head always train; the
    body does unless `frozen_body`, or `lora_rank` above 0, which trains adapters in its place (extra `peft`). `dtype`
    is that of what does not train. `preamble` is text before every history, where the folder has a tokenizer.
    """

    config: dict[str, Any] | None = None
    checkpoint: str | None = None
    preamble: str | None = None
    frozen_body: bool = False
    lora_rank: Annotated[int, Field(ge=0)] = 0
    lora_alpha: Positive = 16
    gradient_checkpointing: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.config is None) == (self.checkpoint is None):
            raise ValueError("give either config or checkpoint")
        if self.preamble is not None and self.checkpoint is None:
            raise ValueError("a preamble needs the tokenizer of a checkpoint")
        if self.dtype == "bfloat16" and not (self.frozen_body or self.lora_rank):
            raise ValueError("dtype bfloat16 is for weights that do not train: set frozen_body or lora_rank")
        return self


class PolicyConfig(Section):
    """The policy: `compact` writes codes, `hybrid` pools that with an item-level head, `causal_lm` is a language model.

    Of the other keys `causal_lm` reads `dropout` alone; see `adagrpo.policies`.
    """

    kind: Literal["compact", "hybrid", "causal_lm"] = "compact"
    lm: LanguageModelConfig | None = None
    width: Positive = 160
    layers: Positive = 2
    heads: Positive = 4
    decoder_hidden: Positive = 320
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    item_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    item_weight: Share = 0.5
    item_loss_weight: NonNegativeFloat = 1.0
    item_negatives: Annotated[int, Field(ge=0)] = 2048

    @model_validator(mode="after")
    def _model_of_its_kind(self) -> Self:
        if (self.kind == "causal_lm") != (self.lm is not None):
            raise ValueError("kind 'causal_lm' needs lm, and no other kind takes it")
        return self

    def model_settings(self) -> dict[str, Any]:
        """The settings as JSON, for the fingerprint of what is made with them; without `lm` where there is none."""
        return self.model_dump(mode="json", exclude=None if self.lm else {"lm"})


class FitConfig(Section):
    """How a model is fitted: AdamW, linear warm-up, then a cosine to a tenth of the peak.

    `average` is the decay of an exponential moving average of the weights, which is then what is validated and kept; 0
    keeps the weights themselves.
    """

    epochs: PositiveFloat = 1.0
    batch_size: Positive = 256
    accumulation: Positive = 1
    learning_rate: PositiveFloat = 1e-3
    warmup: Share = 0.02
    weight_decay: NonNegativeFloat = 0.01
    max_grad_norm: PositiveFloat = 1.0
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    validations: Annotated[int, Field(ge=0)] = 10
    validation_users: Positive = 2000
    checkpoint_seconds: NonNegativeFloat = 60.0


class LambdaRankConfig(Section):
    """LightGBM LambdaRank, fitted where the reward asks for it: `positions` targets a user, `negatives` draws each."""

    positions: Positive = 3
    negatives: Positive = 30
    trees: Positive = 300
    leaves: Annotated[int, Field(ge=2)] = 31
    learning_rate: PositiveFloat = 0.1
    minimum_leaf: Positive = 100


class RankerConfig(Section):
    """The sequential ranker; `loss: auto` takes impressions where there are some, else cross_entropy.

    `negatives` are uniformly sampled, for `sampled`, and for `impressions` beside what was shown (0: shown items only).
    With `folds` above 1, post-training judges a sample by a ranker that never saw its user; 0 and 1 are off.
    """

    loss: Literal["auto", "impressions", "cross_entropy", "sampled"] = "auto"
    negatives: Annotated[int, Field(ge=0)] = 256
    width: Positive = 128
    layers: Positive = 2
    heads: Positive = 2
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    folds: Annotated[int, Field(ge=0, le=100)] = 0
    fit: FitConfig = FitConfig(epochs=30, validations=5)
    lambdarank: LambdaRankConfig = LambdaRankConfig()

    @model_validator(mode="after")
    def _something_to_compare_with(self) -> Self:
        if self.loss == "sampled" and self.negatives == 0:
            raise ValueError("loss 'sampled' needs negatives of at least 1")
        return self


class ObjectiveConfig(Section):
    """NLL + (lambda / B_rl) Σ gate · GRPO; see `adagrpo.trainer.post_training` for what each option does.

    `oracle_agreement` is for the gate `oracle`: the least share of a group's pairs that the reward must order rightly.
    `distill_weight` is for `distill`: the weight of the reward beside the starting policy's log-probability.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)

    lambda_: NonNegativeFloat = Field(1.0, alias="lambda")
    num_generations: Annotated[int, Field(ge=2)] = 16
    negatives: Annotated[int, Field(ge=0)] = 5
    temperature: PositiveFloat = 1.0
    epsilon: PositiveFloat = 0.2
    epsilon_high: PositiveFloat = 0.2
    beta: NonNegativeFloat = 0.0
    num_iterations: Positive = 1
    rollout: Literal["sample", "beam"] = "sample"
    constrained: bool = False
    inject_target: bool = False
    rl_positions: Literal["random", "last", "all"] = "random"
    difficulty: Literal["rollout_miss", "target_rank", "target_nll", "entropy"] = "rollout_miss"
    tau: NonNegativeFloat = 0.5
    q_min: Share = 0.95
    invalid_penalty: NonNegativeFloat = 1.0
    scale_rewards: bool = True
    reward_floor: NonNegativeFloat = 1e-3
    oracle_agreement: Share = 0.75
    distill_weight: NonNegativeFloat = 1.0


class ArmConfig(Section):
    """One way to post-train from the same starting policy."""

    objective: Literal["nll", "grpo", "mixture", "adagrpo", "distill", "best_of_n"]
    gate: Gate | None = None
    lambda_: NonNegativeFloat | None = Field(None, alias="lambda")
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)

    @model_validator(mode="after")
    def _what_it_takes(self) -> Self:
        if self.gate is not None and self.objective in ("nll", "grpo", "mixture"):
            raise ValueError(f"objective '{self.objective}' takes no gate; adagrpo, distill and best_of_n do")
        if self.lambda_ is not None and self.objective == "nll":
            raise ValueError("objective 'nll' takes no lambda: it has no reward to weigh")
        return self

    @property
    def own_gate(self) -> Gate | None:
        """The gate where none is named: all samples, but for `adagrpo`; `nll` has no reward to admit."""
        return {"adagrpo": "adagrpo", "nll": None}.get(self.objective, "all")

    @property
    def admits(self) -> Gate | None:
        """The gate."""
        return self.gate or self.own_gate

    @property
    def name(self) -> str:
        """The arm's name in folders and in metrics.json: `<objective>[-<gate>][-lambda<number>]`, where its own."""
        gate = "" if self.admits == self.own_gate else f"-{self.gate}"
        return f"{self.objective}{gate}" + ("" if self.lambda_ is None else f"-lambda{self.lambda_:g}")

    @classmethod
    def parse(cls, name: str) -> Self:
        """The arm that has a name; the other way round from `name`.

        Raises:
            UserError: no arm is called that; the nearest name is said.

        Example:
            >>> arm = ArmConfig.parse("adagrpo-random-lambda5")
            >>> arm.objective, arm.gate, arm.lambda_, arm.name
            ('adagrpo', 'random', 5.0, 'adagrpo-random-lambda5')
        """
        objectives = get_args(cls.model_fields["objective"].annotation)
        gates = get_args(Gate)
        pattern = f"({'|'.join(objectives)})(?:-({'|'.join(gates)}))?(?:-lambda(.+))?"
        found = re.fullmatch(pattern, name)
        if found is None:
            names = [*objectives, *(f"adagrpo-{gate}" for gate in gates if gate != "adagrpo")]
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names)}; -lambda<number> may follow"
            raise UserError(f"objective '{name}': there is none of that name; {hint}")
        objective, gate, weight = found.groups()
        given = {"objective": objective, "gate": gate, "lambda": weight}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise UserError(f"objective '{name}': {_explain(error).removeprefix(': ')}") from error


class TrainConfig(Section):
    """Post-training: every arm starts from the sft policy and sees the same batches.

    `rl_split` is the share of training positions that sft takes no NLL at, the RL term being taken at these alone; with
    `rl_split_nll` they are NLL positions in post-training, in every arm.
    """

    arms: tuple[ArmConfig, ...] = (
        ArmConfig(objective="nll"),
        ArmConfig(objective="mixture"),
        ArmConfig(objective="adagrpo"),
    )
    fit: FitConfig = FitConfig(epochs=2, learning_rate=2e-4, validations=8)
    gradient_norms_every: Positive = 20
    rl_split: Annotated[float, Field(ge=0, lt=1)] = 0.0
    rl_split_nll: bool = True

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError(f"two arms have the same name: {', '.join(names)}")
        return self


class EvaluationConfig(Section):
    """Full-catalogue evaluation by beam search."""

    beam_width: Annotated[int, Field(ge=10)] = 50
    batch_size: Positive = 256
    mask_history: bool = False


class CompareConfig(Section):
    """What a comparison is to decide, fixed before its runs: see `adagrpo.comparison`.

    `family` holds the arms that claims are made about (null: every arm but sft and the baseline); `margins` say how
    much worse than the baseline an arm may be on other metrics, in the metric's own units.
    """

    baseline: str = "nll"
    family: tuple[str, ...] | None = None
    metric: UserMetric = "hr@10"
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    margins: dict[UserMetric, PositiveFloat] = {"hr@50": 0.01, "hallucination@10": 0.005}
    resamples: Annotated[int, Field(ge=200)] = 2000


class Config(Section):
    """A whole run."""

    name: str = "run"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    max_history: Annotated[int, Field(ge=2)] = 20
    threads: Positive | None = None
    data: DataConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    policy: PolicyConfig = PolicyConfig()
    sft: FitConfig = FitConfig(epochs=60)
    ranker: RankerConfig = RankerConfig()
    reward: RewardOptions = SequentialOptions()
    objective: ObjectiveConfig = ObjectiveConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    compare: CompareConfig = CompareConfig()

    @model_validator(mode="after")
    def _folds_are_of_the_ranker(self) -> Self:
        if self.ranker.folds > 1 and self.reward != SequentialOptions():
            raise ValueError(
                "ranker.folds cross-fits the run's own sequential ranker alone; set it to 0 or drop reward"
            )
        return self


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe and apply `a.b=c` overrides, whose right-hand side is YAML.

    Raises:
        UserError: no such file, not YAML, an unknown key (with the nearest valid one) or a value out of range.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such recipe") from error
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a recipe is a mapping of sections, this is {type(content).__name__}")
    for override in overrides:
        _apply(content, override)
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(error)}") from error


def dump_config(config: Config) -> dict[str, Any]:
    """The configuration as JSON-able values; `Config.model_validate` reads them back."""
    return config.model_dump(mode="json", by_alias=True)


def _apply(content: dict[str, Any], override: str) -> None:
    """Set one dotted key, for example `objective.lambda=0.5`."""
    dotted, equals, text = override.partition("=")
    keys = dotted.split(".")
    if not equals or not all(keys):
        raise UserError(f"--set {override}: write key=value, for example objective.lambda=0.5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override}: '{text}' is not YAML") from error
    for key in keys[:-1]:
        content = content.setdefault(key, {})
        if not isinstance(content, dict):
            raise UserError(f"--set {override}: '{key}' is not a section")
    content[keys[-1]] = value


def _explain(error: ValidationError) -> str:
    """One problem of a validation in one line, with the path of the key and the nearest valid name."""
    problems = error.errors()
    # a misspelt key comes first: where it was a required one, its absence is a consequence
    first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    path, _ = _follow(first["loc"])
    if first["type"] == "extra_forbidden":
        section = _follow(first["loc"][:-1])[1]
        names = [field.alias or name for name, field in section.model_fields.items()]
        near = difflib.get_close_matches(str(first["loc"][-1]), names, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else f"; valid keys here: {', '.join(names)}"
        return f"unknown key '{path}'{hint}"
    message = first["msg"].removeprefix("Value error, ").replace(" using _kind()", " as kind")
    return f"{path}: {message}" + (
        f" (found {first['input']!r})" if first["type"] not in ("missing", "value_error") else ""
    )


def _follow(location: tuple[int | str, ...]) -> tuple[str, Any]:
    """The path of a location as it is written in a recipe, and the section there.

    Pydantic names the kind of a reward in the location, as if it were a key; it is none.
    """
    written: list[str] = []
    section: Any = Config
    for part in location:
        if isinstance(section, list):
            section = next(kind for kind in section if kind.model_fields["kind"].default == part)
            continue
        written.append(str(part))
        if isinstance(part, int):
            section = _plain(get_args(section)[0])
        else:
            known = getattr(section, "model_fields", {}).get(part)
            section = None if known is None else _plain(known.annotation)
    return ".".join(written), section


def _plain(annotation: Any) -> Any:
    """A type without its metadata and without None; of several kinds of a section, the list of them."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) not in (Union, UnionType):
        return annotation
    options = [_plain(option) for option in get_args(annotation) if option is not type(None)]
    return options[0] if len(options) == 1 else options
