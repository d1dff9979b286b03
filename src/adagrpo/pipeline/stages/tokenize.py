"""The stages from items to Semantic IDs: encoding of texts, vectors, quantisation, collisions, audit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import assert_never

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import nn

from adagrpo.config import Config
from adagrpo.data.prepared import load_item_ids, load_items
from adagrpo.errors import UserError
from adagrpo.pipeline.directory import RunDirectory
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.json_files import write_json
from adagrpo.pipeline.stage import Declaration, Read
from adagrpo.semantic_ids.catalog import Catalog, audit, move_to_free_codes, resolve_collisions, sequence_groups
from adagrpo.semantic_ids.embeddings import attribute_vectors, cooccurrence_vectors, mix, starting_rows, text_vectors
from adagrpo.semantic_ids.language import check_model, language_vectors, packaged_model
from adagrpo.semantic_ids.published import import_semantic_ids, read_index
from adagrpo.semantic_ids.quantization import Quantization, level_means, reconstruction_error, residual_kmeans, rq_vae
from adagrpo.storage.hashes import hash_file
from adagrpo.storage.writing import naming
from adagrpo.types import Ragged

ENCODED = ("encode", "vectors.parquet")
ITEM_VECTORS = ("vectors", "vectors.safetensors")
VECTOR_FILE = ":".join(ITEM_VECTORS)  # what stages read
VECTORS = ("tokenizer.vectors", "tokenizer.language_model", "tokenizer.width", "tokenizer.window")  # determine vectors
_COLUMNS = {"attributes": "attributes", "text": "text", "language_model": "text"}  # item columns that vectors read
CLUSTER_BOUND = 1.1  # most items per code of `balanced_kmeans`, in multiples of V / K


def tokenize(run: RunDirectory) -> Declaration:
    """Declare the stage."""
    data, options = RunData(run), run.config.tokenizer
    reads = [*data.training_files[:2], VECTOR_FILE]
    if options.published is not None:
        reads.insert(2, run.data / options.published.path)

    def build(work: Path) -> None:
        codes, error, quantization = _quantize(run)
        unique = codes
        if len(sequence_groups(codes)[1]) < len(codes):
            free = 0 if options.published is not None else options.codes
            nearest = options.collisions == "nearest"
            unique = move_to_free_codes(quantization(), free) if nearest else resolve_collisions(codes)
        catalog = Catalog.from_codes(unique)
        catalog.write(work / "codes.parquet")
        write_json(work / "audit.json", audit(codes, catalog, reconstruction_error=error))

    return Declaration(build, reads, ("codes.parquet", "codes.json", "audit.json"), ("tokenizer", "seed"))


def reads_texts(config: Config) -> bool:
    """Return whether a language model reads the texts of the items."""
    options = config.tokenizer
    # published codes need vectors only to find the nearest free code
    return "language_model" in options.vectors and (options.published is None or options.collisions == "nearest")


def _quantize(run: RunDirectory) -> tuple[NDArray[np.int64], float | None, Callable[[], Quantization]]:
    """(V, L) colliding codes, reconstruction error, and a codebook factory."""
    options, seed = run.config.tokenizer, run.config.seed
    if options.published is not None:
        path, item_ids = run.data / options.published.path, load_item_ids(RunData(run).prepared)
        if options.published.column is None:
            codes = read_index(path, item_ids)
        else:
            columns, bound = options.published.model_dump(exclude={"path"}), run.config.data.max_expansion
            codes = import_semantic_ids(path, item_ids, **columns, max_expansion=bound)
        return codes, None, lambda: level_means(codes, item_vectors(run))
    vectors = item_vectors(run)
    sizes = {"levels": options.levels, "codes": options.codes, "seed": seed}
    match options.quantizer:
        case "rq_vae":
            made = rq_vae(vectors, **sizes, **options.rq_vae.model_dump(), report=_progress(run, "tokenize"))
        case "balanced_kmeans":
            made = residual_kmeans(vectors, **sizes, cluster_bound=CLUSTER_BOUND)
        case "kmeans":
            made = residual_kmeans(vectors, **sizes)
        case _:
            assert_never(options.quantizer)
    return made.codes, reconstruction_error(vectors, made.reconstruct()), lambda: made


def item_vectors(run: RunDirectory) -> NDArray[np.float32]:
    """Return (V, W) vectors, weighted as configured; UserError if a kind of them is of a field that all items lack."""
    items = load_items(RunData(run).prepared)
    for name in run.config.tokenizer.vectors:
        _check_described(items, name)
    return vectors_at_hand(run)


def start_from_vectors(run: RunDirectory, table: nn.Embedding, training: Ragged | None = None) -> None:
    """Initialise an item embedding in place from vectors of items, if any, see `starting_rows`.

    With `training`, co-occurrence is counted in these sequences, not in all.
    """
    vectors = vectors_at_hand(run) if training is None else _vectors_of(run, training)
    if not vectors.shape[1]:
        return
    with torch.no_grad():
        length = float(table.weight.norm(dim=1).mean())
        rows = starting_rows(vectors, table.embedding_dim, length, run.config.seed)
        table.weight.copy_(torch.from_numpy(rows))


def vectors_at_hand(run: RunDirectory) -> NDArray[np.float32]:
    """Return (V, W) vectors of the configured kinds that items have; W is 0 if they have none."""
    return load_file(run.checked(*ITEM_VECTORS))["items"]


def vectors(run: RunDirectory) -> Declaration:
    """Declare the vectors of items, which Semantic IDs, starting weights and lists read."""
    data = RunData(run)

    def build(work: Path) -> None:
        with naming(work):
            save_file({"items": _vectors_of(run, data.training)}, work / ITEM_VECTORS[1])

    reads = [*data.training_files[:2], *encoded_files(run)]
    return Declaration(build, reads, ITEM_VECTORS[1:], (*VECTORS, "seed"))


def encoded_files(run: RunDirectory) -> list[Read]:
    """List the file of encoded texts, if vectors are made of it."""
    return [":".join(ENCODED)] if reads_texts(run.config) else []


def _vectors_of(run: RunDirectory, training: Ragged) -> NDArray[np.float32]:
    items, options = load_items(RunData(run).prepared), run.config.tokenizer
    weights = dict[str, float](options.vectors.items())
    if not reads_texts(run.config):
        weights.pop("language_model", None)
    weights = {name: weight for name, weight in weights.items() if _described(items, name)}
    if not weights:
        return np.zeros((len(items), 0), np.float32)
    makers: dict[str, Callable[[], NDArray[np.float32]]] = {
        "attributes": lambda: attribute_vectors(items["attributes"].to_list(), width=options.width),
        "text": lambda: text_vectors(items["text"].to_list(), width=options.width),
        "cooccurrence": lambda: cooccurrence_vectors(training, len(items), window=options.window, width=options.width),
        "language_model": lambda: pl.read_parquet(run.checked(*ENCODED))["vector"].to_numpy(),
    }
    return mix({name: makers[name]() for name in weights}, weights, seed=run.config.seed)


def _described(items: pl.DataFrame, vectors: str) -> bool:
    column = _COLUMNS.get(vectors)
    if column is None:
        return True
    values = items[column]
    return bool((values.list.len() > 0 if column == "attributes" else values != "").any())


def _check_described(items: pl.DataFrame, vectors: str) -> None:
    """Refuse a field that all items lack."""
    if not _described(items, vectors):
        column = _COLUMNS[vectors]
        what = "attributes" if column == "attributes" else "a text"
        raise UserError(
            f"tokenizer.vectors: {vectors} is asked for, and none of the {len(items):,} items has {what}; name an item"
            f" table whose ids are those of the logs (data.items), with its columns of {column}, or leave {vectors} out"
        )


def encode(run: RunDirectory) -> Declaration:
    """Declare the encoding of texts, a slow stage of its own."""
    data, model = RunData(run), language_model_folder(run)
    check_model(model)
    files = {path.relative_to(model).as_posix(): hash_file(path) for path in model.rglob("*") if path.is_file()}

    def build(work: Path) -> None:
        items = load_items(data.prepared)
        _check_described(items, "language_model")
        vectors = language_vectors(
            items["text"].to_list(), model, device=str(data.device), report=_progress(run, ENCODED[0])
        )
        columns = [pl.Series("item", np.arange(len(items), dtype=np.int32)), pl.Series("vector", vectors)]
        pl.DataFrame(columns).write_parquet(work / ENCODED[1])

    return Declaration(build, ["prepare:items.parquet"], ENCODED[1:], also={"model": files})


def language_model_folder(run: RunDirectory) -> Path:
    """Return the folder of the language model."""
    named = run.config.tokenizer.language_model
    return packaged_model() if named is None else run.data / named


def _progress(run: RunDirectory, label: str) -> Callable[[int, int], None]:
    return lambda done, total: run.console.progress(label, done, total, {})
