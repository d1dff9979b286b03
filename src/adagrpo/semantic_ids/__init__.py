"""Semantic IDs: item vectors, their residual quantisation, the catalogue of codes and its prefix tree."""

from adagrpo.semantic_ids.catalog import Catalog, audit, move_to_free_codes, resolve_collisions, sequence_groups
from adagrpo.semantic_ids.embeddings import attribute_vectors, cooccurrence_vectors, mix, starting_rows, text_vectors
from adagrpo.semantic_ids.language import language_vectors, packaged_model
from adagrpo.semantic_ids.published import import_semantic_ids, read_index
from adagrpo.semantic_ids.quantization import Quantization, level_means, reconstruction_error, residual_kmeans, rq_vae

__all__ = [
    "Catalog",
    "Quantization",
    "attribute_vectors",
    "audit",
    "cooccurrence_vectors",
    "import_semantic_ids",
    "language_vectors",
    "level_means",
    "mix",
    "move_to_free_codes",
    "packaged_model",
    "read_index",
    "reconstruction_error",
    "residual_kmeans",
    "resolve_collisions",
    "rq_vae",
    "sequence_groups",
    "starting_rows",
    "text_vectors",
]
