"""Semantic IDs: item vectors, their residual quantisation, the catalogue of codes and its prefix tree."""

from adagrpo.semantic_ids.catalog import Catalog, audit, import_semantic_ids
from adagrpo.semantic_ids.embeddings import attribute_vectors, cooccurrence_vectors, mix, text_vectors
from adagrpo.semantic_ids.quantization import Quantization, residual_kmeans, resolve_collisions
from adagrpo.semantic_ids.trie import Trie

__all__ = [
    "Catalog",
    "Quantization",
    "Trie",
    "attribute_vectors",
    "audit",
    "cooccurrence_vectors",
    "import_semantic_ids",
    "mix",
    "residual_kmeans",
    "resolve_collisions",
    "text_vectors",
]
