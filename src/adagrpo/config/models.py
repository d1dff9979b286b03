"""The sections `tokenizer`, `policy`, `sft` and `ranker`: Semantic IDs, models and their fits."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator

from adagrpo.config.section import NonNegativeFloat, Positive, PositiveFloat, Section, Share

NegativeSource = Literal["uniform", "popularity", "neighbours"]
NEGATIVE_SOURCES: tuple[NegativeSource, ...] = get_args(NegativeSource)


class PublishedIds(Section):
    """Semantic IDs from elsewhere: a Parquet file with a list of codes per item, or an index of token names.

    See `adagrpo.semantic_ids.published`.
    """

    path: str
    column: str | None = None
    id_column: str = "item_id"

    @model_validator(mode="after")
    def _columns_of_parquet(self) -> Self:
        if (self.column is None) != self.path.endswith((".json", ".txt")):
            raise ValueError("column is the list column of a Parquet file; a path that ends in .json or .txt has none")
        return self


class RqVaeConfig(Section):
    """The RQ-VAE of `tokenizer.quantizer: rq_vae`; see `adagrpo.semantic_ids.quantization`."""

    epochs: Positive = 100
    batch_size: Positive = 256
    learning_rate: PositiveFloat = 3e-3
    hidden: Positive = 256
    width: Positive = 64
    commitment: NonNegativeFloat = 0.25


class TokenizerConfig(Section):
    """Item vectors and their residual quantisation.

    Hybrid policies and next-item rankers are initialised from `vectors` too.
    """

    vectors: dict[Literal["attributes", "text", "cooccurrence", "language_model"], PositiveFloat] = Field(
        {"cooccurrence": 1.0}, min_length=1
    )
    language_model: str | None = None
    width: Positive = 128
    window: Positive = 3
    quantizer: Literal["kmeans", "balanced_kmeans", "rq_vae"] = "kmeans"
    levels: Positive = 3
    codes: Annotated[int, Field(ge=2)] = 256
    rq_vae: RqVaeConfig = RqVaeConfig()
    collisions: Literal["level", "nearest"] = "level"
    published: PublishedIds | None = None


class LanguageModelConfig(Section):
    """A Hugging Face causal LM, randomly initialised from `config` or loaded from a folder below `--data`.

    Embeddings and head always train; the body does unless `frozen_body`, or `lora_rank` above 0.
    """

    config: dict[str, Any] | None = None
    checkpoint: str | None = None
    preamble: str | None = None
    suffix: str | None = None
    tokens: tuple[str, ...] = ()
    item: str = "{codes}"
    separator: str = ""
    trained: bool = False
    frozen_body: bool = False
    lora_rank: Annotated[int, Field(ge=0)] = 0
    lora_alpha: Positive = 16
    gradient_checkpointing: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.config is None) == (self.checkpoint is None):
            raise ValueError("give either config or checkpoint")
        if self.checkpoint is None and (self.preamble is not None or self.suffix is not None):
            raise ValueError("a preamble or suffix needs the tokenizer of a checkpoint")
        if self.checkpoint is None and (self.tokens or self.trained):
            raise ValueError("tokens and trained are of a checkpoint")
        for template in self.tokens:
            if template.count("{code}") != 1:
                raise ValueError(f"tokens: '{template}' has no place for the number; write for example <a_{{code}}>")
        if self.item.count("{codes}") != 1:
            raise ValueError(f"item: '{self.item}' has no place for the codes; write {{codes}} once")
        if not self.tokens and (self.item != "{codes}" or self.separator):
            raise ValueError("item and separator are for tokens that the checkpoint has; name them in tokens")
        if self.dtype == "bfloat16" and not (self.frozen_body or self.lora_rank):
            raise ValueError("dtype bfloat16 is for weights that do not train: set frozen_body or lora_rank")
        return self


class PolicyConfig(Section):
    """The policy: `compact`, `hybrid` (with an item-level head) or `causal_lm`; see `adagrpo.policies`."""

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
    item_prefix: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _model_of_its_kind(self) -> Self:
        if (self.kind == "causal_lm") != (self.lm is not None):
            raise ValueError("kind 'causal_lm' needs lm, and no other kind takes it")
        if self.kind != "causal_lm":
            _check_heads(self.width, self.heads)
        return self


class FitConfig(Section):
    """Fit of a model by AdamW with linear warm-up and cosine decay to a tenth of the peak."""

    not_of_the_result: ClassVar[frozenset[str]] = frozenset({"checkpoint_seconds"})

    epochs: PositiveFloat = 1.0
    batch_size: Positive = 256
    accumulation: Positive = 1
    learning_rate: PositiveFloat = 1e-3
    warmup: Share = 0.02
    weight_decay: NonNegativeFloat = 0.01
    max_grad_norm: PositiveFloat = 1.0
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    validations: Annotated[int, Field(ge=0)] = 10
    patience: Annotated[int, Field(ge=0)] = 0
    validation_users: Positive = 2000
    checkpoint_seconds: NonNegativeFloat = 60.0


class LambdaRankConfig(Section):
    """LightGBM LambdaRank, fitted if the reward needs it. `negatives: 0` requires impressions."""

    positions: Positive = 3
    negatives: Annotated[int, Field(ge=0)] = 30
    sources: Annotated[tuple[NegativeSource, ...], Field(min_length=1)] = NEGATIVE_SOURCES
    trees: Positive = 300
    leaves: Annotated[int, Field(ge=2)] = 31
    learning_rate: PositiveFloat = 0.1
    minimum_leaf: Positive = 100


class RankerConfig(Section):
    """The sequential ranker.

    Weights of impressions: `adagrpo.trainer.ranker_fit`. `user_share` applies to LambdaRank too.
    """

    loss: Literal["auto", "impressions", "cross_entropy", "sampled"] = "auto"
    negatives: Annotated[int, Field(ge=0)] = 256
    propensity: Literal["ignore", "ips", "snips"] = "ignore"
    propensity_floor: Annotated[float, Field(gt=0, le=1)] = 0.01
    width: Positive = 128
    layers: Positive = 2
    heads: Positive = 2
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    folds: Annotated[int, Field(ge=0, le=100)] = 0
    user_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    fit: FitConfig = FitConfig(epochs=20, batch_size=64, learning_rate=2e-3, average=0.999)
    lambdarank: LambdaRankConfig = LambdaRankConfig()

    @model_validator(mode="after")
    def _something_to_compare_with(self) -> Self:
        if self.loss == "sampled" and self.negatives == 0:
            raise ValueError("loss 'sampled' needs negatives of at least 1")
        _check_heads(self.width, self.heads)
        return self


def _check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"width ({width}) must be a multiple of heads ({heads})")
