"""Item vectors from attributes, text and co-occurrence.

    TF-IDF     x_iw = (1 + log n_iw) (log((1 + V) / (1 + df_w)) + 1), rows L2-normalised
    PPMI       p_ij = max(0, log(n_ij n / (n_i n_j))),  n_ij pairs of items within a window, n_i = Σ_j n_ij, n = Σ_i n_i
    vectors    U_W diag(s_W)^power of the truncated singular value decomposition, rows L2-normalised

Source: Levy & Goldberg, NeurIPS 2014, and Levy, Goldberg & Dagan, TACL 2015 (PPMI, power 0.5); latent semantic analysis
for the others. Beyond `PAIRS` pairs an item keeps the `PAIRS / V` neighbours of largest `n_ij p_ij` (local mutual
information, Evert 2005). No item is its own neighbour; rows without a signal are 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import qr
from scipy.sparse.linalg import svds

from adagrpo.sparse_rows import largest_of_rows
from adagrpo.types import Ints, Ragged

PAIRS = 2**27  # entries that are kept, about; 1.1 GB of them
BLOCK = 2**25  # pairs that are counted at a time
EXACT_ROWS = 2**17  # of a matrix whose decomposition may be exact, for which the values are float64
_POSITIONS = 2**22  # of the log, processed at a time


def pair_information(
    training: Ragged, num_items: int, window: int, *, most: int = PAIRS, block: int = BLOCK
) -> sparse.csr_array:
    """Return the (V, V) information of pairs, symmetric if nothing was cut; columns ascend in each row.

    Items are at most `window` apart; above `most` pairs neighbours are cut; `block` of them are counted at a time.
    """
    reach = min(window, int(training.lengths.max(initial=0)))
    left = training.values_after(reach)
    totals = np.zeros(num_items, np.int64)  # n_i
    for start in range(0, len(training.values), _POSITIONS):
        here = slice(start, start + _POSITIONS)
        for distance in range(1, int(left[here].max()) + 1):
            near = np.flatnonzero(left[here] >= distance) + start
            one, other = training.values[near], training.values[near + distance]
            for side in (one, other):
                totals += np.bincount(side[one != other], minlength=num_items)
    total = int(totals.sum())
    limit = None if total <= most else max(1, most // num_items)
    kind = np.float64 if limit is None and num_items <= EXACT_ROWS else np.float32
    ends = np.searchsorted(totals.cumsum(), np.arange(block, total + block, block), side="right")
    bounds = np.unique([0, *np.minimum(ends, num_items), num_items])
    counts, columns, values = [np.zeros(1, np.int64)], [np.empty(0, np.int32)], [np.empty(0, kind)]
    positions, starts = training.positions_by_value(num_items)
    for first, last in pairwise(bounds.tolist()):
        keys = _keys(training.values, left, positions[starts[first] : starts[last]], num_items)
        training.release()
        keys.sort()
        distinct = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])[: len(keys)])
        times, keys = np.diff(np.append(distinct, len(keys))), keys[distinct]
        row, column = keys // num_items, keys % num_items
        chance = totals[row].astype(np.float64) * totals[column].astype(np.float64)
        information = np.log(times * float(total) / chance)
        kept = information > 0
        if limit is not None:
            kept = largest_of_rows(np.bincount(row - first), np.where(kept, times * information, 0.0), limit)
        counts.append(np.bincount(row[kept] - first, minlength=last - first))
        columns.append(column[kept].astype(np.int32))
        values.append(information[kept].astype(kind))
    del positions
    entries = np.concatenate(values)
    values.clear()
    where = (np.concatenate(columns), np.concatenate(counts).cumsum())
    columns.clear()
    return sparse.csr_array((entries, *where), shape=(num_items, num_items))


def _keys(
    values: NDArray[np.int32],  # (total,)
    left: NDArray[np.unsignedinteger],  # (total,)
    positions: NDArray[np.integer],  # (P,) of the log
    num_items: int,
) -> Ints:
    """Return (N,) unsorted keys item · V + neighbour of pairs."""
    parts, farthest = [np.empty(0, np.int64)], int(left.max(initial=0))

    def add(items: NDArray[np.int32], neighbours: NDArray[np.int32]) -> None:
        differ = items != neighbours
        parts.append(items[differ].astype(np.int64) * num_items + neighbours[differ])

    for start in range(0, len(positions), _POSITIONS):
        here = positions[start : start + _POSITIONS].astype(np.int64)
        items, following = values[here], left[here]
        for distance in range(1, farthest + 1):
            after = following >= distance
            add(items[after], values[here[after] + distance])
            before = np.maximum(here - distance, 0)
            reached = (here >= distance) & (left[before] >= distance)
            add(items[reached], values[before[reached]])
    return np.concatenate(parts)


_WORD = re.compile(r"\w+")
EXACT_ENTRIES = 2**25
EXTRA, ROUNDS = 16, 2
# Relative to the largest: rows and singular values below this are rounding, of float64 and of float32.
_FLOOR, _SKETCHED_FLOOR = 1e-8, 1e-5
# Length, before quantisation, of the vector of an item that has no signal.
_NO_SIGNAL_LENGTH = 1e-2
_ROWS = 2**16  # that are scaled at a time


def attribute_vectors(attributes: Sequence[Sequence[str]], *, width: int) -> NDArray[np.float32]:
    """Return (V, W) vectors of items by shared attributes; columns beyond the rank are zero."""
    return _reduce(tf_idf(attributes, min_items=1), width, power=1.0)


def text_vectors(texts: Sequence[str], *, width: int, first: int | None = None) -> NDArray[np.float32]:
    """Return (V, W) vectors of items by shared lower-case words that occur in at least two items.

    With `first`, they are fitted on so many texts, and the rest is projected.
    """
    counted = tf_idf(map(words, texts), min_items=2, first=first)
    return _reduce(counted[:first], width, power=1.0, later=None if first is None else counted[first:])


def words(text: str) -> list[str]:
    """Return the words of a text in lower case.

    >>> words("Nitrile gloves, 100-pack")
    ['nitrile', 'gloves', '100', 'pack']
    """
    return _WORD.findall(text.lower())


def cooccurrence_vectors(
    training: Ragged, num_items: int, *, window: int, width: int, power: float = 0.5
) -> NDArray[np.float32]:
    """Return (V, W) vectors of items by co-occurrence within a window, zero without a neighbour or beyond the rank.

    `power` is the exponent of the singular values.
    """
    if window < 1:
        raise ValueError(f"window {window}: expected at least 1")
    values = training.values
    if len(values) and not 0 <= values.min() <= values.max() < num_items:
        raise ValueError(f"training holds items {values.min()} .. {values.max()}; expected 0 .. {num_items - 1}")
    return _reduce(pair_information(training, num_items, window), width, power)


# vectors (V, W) -> (V, D)
def starting_rows(vectors: NDArray[np.float32], width: int, length: float, seed: int) -> NDArray[np.float32]:
    """Return initial rows of an item embedding: the vectors along their principal directions, randomly rotated.

    See `research/sequential_ranker`.
    """
    kept = min(width, vectors.shape[1])
    directions = np.linalg.eigh(vectors.T @ vectors)[1][:, ::-1][:, :kept]
    turned = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))[0][:kept]
    rows = vectors @ (directions @ turned).astype(np.float32)
    mean: float = np.linalg.norm(rows, axis=1).mean()
    return np.asarray(rows * (length / max(mean, _FLOOR)), np.float32)


def mix(
    parts: Mapping[str, NDArray[np.float32]], weights: Mapping[str, float], *, seed: int = 0
) -> NDArray[np.float32]:
    """Concatenate kinds of vectors, so that similarities add up in proportion to the weights: (V, Σ W_p) float32.

    Parts, (V, W_p) each, and result are row-normalised. An item without a signal gets a random direction of length .01.
    """
    if not parts or parts.keys() != weights.keys():
        raise ValueError(f"weights names {sorted(weights)}, parts {sorted(parts)}: expected the same, at least one")
    if len({len(part) for part in parts.values()}) != 1:
        raise ValueError(f"parts have {[len(part) for part in parts.values()]} rows: expected the same number")
    for name, weight in weights.items():
        if not 0 <= weight < np.inf:
            raise ValueError(f"weight of {name} is {weight}: expected a finite number, at least 0")
    mixed = np.empty((len(next(iter(parts.values()))), sum(part.shape[1] for part in parts.values())), np.float32)
    generator = np.random.default_rng(seed)
    for first in range(0, len(mixed), _ROWS):
        rows = slice(first, first + _ROWS)
        scaled = [_unit_rows(part[rows].astype(np.float64)) * np.sqrt(weights[name]) for name, part in parts.items()]
        block = _unit_rows(np.concatenate(scaled, axis=1))
        silent = ~block.any(axis=1)
        directions = generator.standard_normal((int(silent.sum()), block.shape[1]))
        block[silent] = _unit_rows(directions) * _NO_SIGNAL_LENGTH
        mixed[rows] = block
    return mixed


def tf_idf(documents: Iterable[Sequence[str]], *, min_items: int, first: int | None = None) -> sparse.csr_array:
    """Return (V, words) TF-IDF of words in at least `min_items` documents, fitted on the `first` ones."""
    vocabulary: dict[str, int] = {}
    columns: list[int] = []
    ends = [0]
    for document in documents:
        columns.extend(vocabulary.setdefault(word, len(vocabulary)) for word in document)
        ends.append(len(columns))
    shape = (len(ends) - 1, len(vocabulary))
    counts = sparse.csr_array((np.ones(len(columns)), np.array(columns, dtype=np.int64), ends), shape=shape)
    counts.sum_duplicates()
    deciding = counts[:first]
    known = int(deciding.indices.max(initial=-1)) + 1  # words are numbered as they come
    counts = counts if known == shape[1] else counts[:, :known]
    frequency = np.bincount(deciding.indices, minlength=known)
    counts.data = 1 + np.log(counts.data)
    idf = np.log((1 + deciding.shape[0]) / (1 + frequency)) + 1
    weighted = (counts @ sparse.diags_array(np.where(frequency >= min_items, idf, 0.0))).tocsr()
    lengths = np.sqrt(weighted.multiply(weighted).sum(axis=1))
    normalised: sparse.csr_array = (sparse.diags_array(1 / np.where(lengths > 0, lengths, 1.0)) @ weighted).tocsr()
    return normalised


def _reduce(
    matrix: sparse.csr_array, width: int, power: float, later: sparse.csr_array | None = None
) -> NDArray[np.float32]:
    """Return (rows, width) unit rows of `U diag(s)^power`; `later` rows `a` follow as `a V diag(s)^(power - 1)`."""
    if width < 1:
        raise ValueError(f"width {width}: expected at least 1")
    reduced = np.zeros((matrix.shape[0] + (0 if later is None else later.shape[0]), width), np.float32)
    if not matrix.nnz:
        return reduced
    vectors, values = truncated_svd(matrix, width)
    peaks = [np.abs(column).argmax() for column in vectors.T]
    factors = np.sign(vectors[peaks, np.arange(len(values))]) * values**power
    placed = vectors[:0] if later is None else later @ (matrix.T @ (vectors * (factors / values**2)))
    blocks = [slice(first, min(first + _ROWS, len(vectors))) for first in range(0, len(vectors), _ROWS)]
    for rows in blocks:
        vectors[rows] *= factors
    # contiguous rows, so that lengths do not depend on the solver's memory layout
    lengths = np.concatenate([np.linalg.norm(_padded(vectors[rows], width), axis=1) for rows in blocks])
    floor = _FLOOR * lengths.max(initial=0.0)
    noise = lengths <= floor
    for rows in blocks:
        block = _padded(vectors[rows], width)
        block[noise[rows]] = 0
        reduced[rows] = _unit_rows(block)
    placed[np.linalg.norm(placed, axis=1) <= floor] = 0
    reduced[len(vectors) :] = _unit_rows(_padded(placed, width))
    return reduced


# matrix (rows, columns)
def truncated_svd(matrix: sparse.csr_array, width: int) -> tuple[NDArray[np.floating], NDArray[np.float64]]:
    """Return left singular vectors (rows, W') and at most `width` values (W',), largest first, none at rounding level.

    A large matrix is sketched, its vectors being float32.
    """
    smaller = min(matrix.shape)
    if width >= smaller and smaller * max(matrix.shape) <= EXACT_ENTRIES:  # the iterative solver cannot find them all
        left, values, _ = np.linalg.svd(matrix.toarray(), full_matrices=False)
    elif width < smaller and matrix.shape[0] <= EXACT_ROWS and matrix.nnz <= EXACT_ENTRIES:
        start = np.random.default_rng(0).standard_normal(smaller)
        left, values, _ = svds(matrix, k=width, v0=start, return_singular_vectors="u")
        order = np.argsort(-values, kind="stable")
        left, values = left[:, order].astype(np.float64), values[order].astype(np.float64)
    else:
        return sketched_svd(matrix, width)
    kept = values > _FLOOR * values[0]
    return left[:, kept], values[kept]


# matrix (rows, columns)
def sketched_svd(matrix: sparse.csr_array, width: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Compute `truncated_svd` by a randomised sketch.

    Y_0 = A Ω,  Q_i = orth(Y_i),  Y_{i+1} = A (A^T Q_i)        Ω Gaussian, W + 16 columns; A ≈ Q Q^T A after two rounds

    Source: Halko, Martinsson & Tropp 2011, algorithms 4.4 and 5.1.
    """
    matrix = matrix.astype(np.float32, copy=False)
    wide = min(width + EXTRA, *matrix.shape)
    basis = np.random.default_rng(0).standard_normal((matrix.shape[1], wide), dtype=np.float32)
    for step in range(ROUNDS + 1):
        basis = qr(matrix @ basis, mode="economic", overwrite_a=True, check_finite=False)[0]
        basis = matrix.T @ basis if step < ROUNDS else basis
    # Q^T A is small on one side alone: its triangular factor has its singular values
    (small,) = qr((matrix.T @ basis).astype(np.float64, copy=False), mode="r", overwrite_a=True, check_finite=False)
    turn, values, _ = np.linalg.svd(small.T, full_matrices=False)
    values = values[:width]
    kept = values > _SKETCHED_FLOOR * values[0]
    return basis @ turn[:, :width][:, kept].astype(np.float32), values[kept]


def _padded(rows: NDArray[np.floating], width: int) -> NDArray[np.floating]:
    block = np.zeros((len(rows), width), rows.dtype)
    block[:, : rows.shape[1]] = rows
    return block


def _unit_rows(matrix: NDArray[np.floating]) -> NDArray[np.floating]:
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    return matrix / np.where(lengths > 0, lengths, 1.0)
