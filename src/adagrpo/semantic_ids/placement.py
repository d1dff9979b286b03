"""Codes for items that arrive after the tokenizer was fitted: free codes near those of similar items.

    w_j = (κ s_j / Σ s + n_j) / (κ + Σ n)              x = |x̄| Σ_j w_j x_j / |Σ_j w_j x_j|

`s_j` is the TF-IDF cosine with known item `j` (nearest only), `n_j` their co-occurrences, `κ` the weight of the text.
Codes are, level by level, the nearest centroid of `x` under which a sequence is free. A level that numbers items
(`adagrpo.semantic_ids.catalog`) gets 0 if possible, as policies have seldom seen other numbers
(`research/catalog_changes`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from adagrpo.errors import UserError
from adagrpo.semantic_ids.embeddings import tf_idf
from adagrpo.semantic_ids.quantization import Quantization
from adagrpo.types import Ragged

_ENTRIES = 2**22  # similarities in memory at a time


def nearest_documents(known: Sequence[Sequence[str]], new: Sequence[Sequence[str]], count: int) -> sparse.csr_array:
    """Return (N, V) TF-IDF cosines of new documents with their `count` nearest known ones; ties go to the first."""
    vectors = tf_idf([*known, *new], min_items=2)
    others, of_known = vectors[len(known) :], vectors[: len(known)].T.tocsr()
    return nearest_of(len(new), len(known), lambda rows: (others[rows] @ of_known).tocsr(), count)


def nearest_of(
    rows: int, columns: int, similarity: Callable[[slice], sparse.csr_array], count: int
) -> sparse.csr_array:
    """Return the `count` largest similarities of (N, V) rows, computed by slices, (n, V)."""
    step = max(1, _ENTRIES // max(1, columns))
    starts = range(0, max(1, rows), step)
    return sparse.vstack([keep_largest(similarity(slice(first, first + step)), count) for first in starts]).tocsr()


def keep_largest(similarity: sparse.csr_array, count: int) -> sparse.csr_array:
    """Keep the `count` largest positive entries per row; ties go to the lower column."""
    entries = similarity.tocoo()
    row, column = entries.coords
    order = np.lexsort((column, -entries.data, row))
    row, column, values = row[order], column[order], entries.data[order]
    counts = np.bincount(row, minlength=similarity.shape[0])
    rank = np.arange(len(row)) - np.repeat(counts.cumsum() - counts, counts)
    kept = (rank < count) & (values > 0)
    return sparse.csr_array((values[kept], (row[kept], column[kept])), shape=similarity.shape)


def seen_together(sequences: Ragged, known: int, total: int, window: int) -> sparse.csr_array:
    """Return (total - known, known) counts of new items within a window of known ones, which come first."""
    rows = np.repeat(np.arange(len(sequences)), sequences.lengths)
    values = sequences.values.astype(np.int64)
    new, old = [], []
    for distance in range(1, min(window, int(sequences.lengths.max(initial=1)) - 1) + 1):
        left, right = values[:-distance], values[distance:]
        same = rows[:-distance] == rows[distance:]
        for one, other in ((left, right), (right, left)):
            kept = same & (one >= known) & (other < known)
            new.append(one[kept] - known)
            old.append(other[kept])
    entries = (np.concatenate(new), np.concatenate(old)) if new else (np.empty(0, int), np.empty(0, int))
    shape = (total - known, known)
    return sparse.coo_array((np.ones(len(entries[0])), entries), shape=shape).tocsr()


# similarity and together (N, V)
def weights_of(similarity: sparse.csr_array, together: sparse.csr_array, prior: float) -> sparse.csr_array:
    """Return the (N, V) weights `w`, given `s` and `n`; rows sum to 1, or to 0 without any signal."""
    sums, seen = similarity.sum(axis=1), together.sum(axis=1)
    texts = sparse.diags_array(np.where(sums > 0, prior / np.where(sums > 0, sums, 1), 0)) @ similarity
    total = np.where(sums > 0, prior, 0) + seen
    weights: sparse.csr_array = (sparse.diags_array(1 / np.where(total > 0, total, 1)) @ (texts + together)).tocsr()
    return weights


def free_codes(
    weights: sparse.csr_array,  # (N, V), from `weights_of`
    quantization: Quantization,  # of V items
    level_sizes: Sequence[int],  # (L,)
    taken: NDArray[np.int64],  # (V', L), codes of all known items, delisted ones included
) -> NDArray[np.int64]:
    """Return (N, L) free codes for new items, in the given order; UserError if no sequence is left.

    `quantization` is of the first levels or of all; codebooks may be smaller than the catalogue's `level_sizes`.
    """
    points = quantization.points.astype(np.float64)
    vectors = weights @ points
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors *= np.linalg.norm(points, axis=1).mean() / np.where(lengths > 0, lengths, 1)
    books = [book[:size].astype(np.float64) for book, size in zip(quantization.codebooks, level_sizes, strict=False)]
    meaning = len(books)
    own, numbered = _Taken([len(book) for book in books]), _Taken([*map(len, books), *level_sizes[meaning:]])
    for codes in np.unique(taken[:, :meaning], axis=0).tolist():
        own.add(codes)
    for codes in taken.tolist():
        numbered.add(codes)
    placed = np.zeros((len(vectors), len(level_sizes)), dtype=np.int64)
    for row, vector in enumerate(vectors):
        alone = own.nearest_free(vector, books)
        found = numbered.nearest_free(vector, books) if alone is None else alone
        if found is None:
            raise UserError("catalog update: every Semantic ID is taken; tokenize again with more codes or levels")
        placed[row, : len(found)] = found
        if alone is not None:
            own.add(alone)
        numbered.add(placed[row].tolist())
    return placed


class _Taken:
    """Number of used sequences below each prefix."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = sizes
        self.room = [math.prod(sizes[level + 1 :]) for level in range(len(sizes))]
        self.below: Counter[tuple[int, ...]] = Counter()

    def add(self, codes: Sequence[int]) -> None:
        self.below.update(tuple(codes[: level + 1]) for level in range(len(codes)))

    def nearest_free(self, vector: NDArray[np.float64], books: Sequence[NDArray[np.float64]]) -> list[int] | None:
        codes: list[int] = []
        for level, size in enumerate(self.sizes):
            order: Iterable[int] = range(size)
            if level < len(books):
                order = np.argsort(np.square(books[level] - vector).sum(axis=1), kind="stable").tolist()
            code = next((code for code in order if self.below[(*codes, code)] < self.room[level]), None)
            if code is None:
                return None
            codes.append(code)
            if level < len(books):
                vector = vector - books[level][code]
        return codes
