"""The section `tokenizer`: item vectors, quantiser and collisions."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from adagrpo.config.section import NonNegativeFloat, Positive, PositiveFloat, Section


class PublishedIds(Section):
    """Semantic IDs from elsewhere: a Parquet file with a list of codes per item, or an index of token names.

    An index is a JSON file, `{"item id": ["<a_236>", "<b_231>", ..], ..}`, or a text file with lines
    `<a_236><b_231>.. TAB title TAB item id`; the code is the last number of a name.
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
    """The RQ-VAE of `tokenizer.quantizer: rq_vae`; see `adagrpo.semantic_ids.rq_vae`."""

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
