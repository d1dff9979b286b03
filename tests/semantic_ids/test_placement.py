"""Codes for new items, by hand and against the obvious loop."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from scipy import sparse

from adagrpo.errors import UserError
from adagrpo.semantic_ids import placement
from adagrpo.semantic_ids.placement import free_codes, keep_largest, nearest_documents, seen_together, weights_of
from adagrpo.semantic_ids.quantization import Quantization, level_means
from adagrpo.types import Ragged


def rows(values: object) -> sparse.csr_array:
    return sparse.csr_array(np.array(values, dtype=float))


def test_the_weights_count_a_text_as_its_prior() -> None:
    """κ = 2: text alone is 3/4 and 1/4; with two sightings of item 2 the text is half; without a text, sightings."""
    similarity = rows([[0.6, 0.2, 0, 0], [0.6, 0.2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    together = rows([[0, 0, 0, 0], [0, 0, 2, 0], [1, 0, 0, 3], [0, 0, 0, 0]])
    expected = [[0.75, 0.25, 0, 0], [0.375, 0.125, 0.5, 0], [0.25, 0, 0, 0.75], [0, 0, 0, 0]]
    np.testing.assert_allclose(weights_of(similarity, together, 2.0).toarray(), expected, rtol=1e-12)


def test_sightings_are_those_of_the_obvious_loop() -> None:
    draw = np.random.default_rng(0)
    sequences = [draw.integers(0, 9, length) for length in (0, 1, 2, 7, 12)]
    offsets = np.cumsum([0, *map(len, sequences)])
    expected = np.zeros((3, 6))
    for sequence in sequences:
        for one, other in itertools.permutations(range(len(sequence)), 2):
            if abs(one - other) <= 3 and sequence[one] >= 6 > sequence[other]:
                expected[sequence[one] - 6, sequence[other]] += 1
    actual = seen_together(Ragged(np.concatenate(sequences).astype(np.int32), offsets), 6, 9, 3)
    np.testing.assert_array_equal(actual.toarray(), expected)
    nobody = seen_together(Ragged(np.empty(0, np.int32), np.zeros(1, np.int64)), 6, 9, 3)
    assert nobody.shape == (3, 6) and nobody.nnz == 0


def test_the_nearest_are_kept_and_equals_by_their_number() -> None:
    kept = keep_largest(rows([[0.1, 0.5, 0.5, 0.5], [0, 0, 0.2, 0], [0, 0, 0, 0]]), 2).toarray()
    assert kept.tolist() == [[0, 0.5, 0.5, 0], [0, 0, 0.2, 0], [0, 0, 0, 0]]


def test_documents_of_the_same_words_are_nearest() -> None:
    known = [["red", "shoe"], ["red", "tent"], ["blue", "tent"], []]
    found = nearest_documents(known, [["tent", "blue"], ["unheard"]], 1).toarray()
    assert found[0].argmax() == 2 and found[0, 2] == pytest.approx(1) and not found[1].any()


def alike(known: int, new: int) -> list[list[list[str]]]:
    """Documents that all share a word, and some of which share another."""
    return [[["every", f"word{number % 7}"] for number in range(count)] for count in (known, new)]


@pytest.mark.parametrize("entries", [1, 40])  # a row at a time, and two
def test_blocks_of_rows_give_what_the_whole_gives(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    known, new = alike(20, 9)
    whole = nearest_documents(known, new, 3)
    monkeypatch.setattr(placement, "_ENTRIES", entries)
    blocks = nearest_documents(known, new, 3)
    assert np.array_equal(blocks.toarray(), whole.toarray()) and whole.nnz == 27
    dense = np.random.default_rng(0).integers(0, 4, (9, 20)).astype(float)  # with equals and zeros
    found = placement.nearest_of(9, 20, lambda rows: sparse.csr_array(dense[rows]), 3)
    assert np.array_equal(found.toarray(), keep_largest(sparse.csr_array(dense), 3).toarray())
    assert nearest_documents(known, [], 3).shape == (0, 20)


def test_memory_does_not_grow_with_the_number_of_new_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_ENTRIES", 2**16)
    known, new = alike(2000, 3000)
    tracemalloc.start()
    nearest_documents(known, new, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 * 2**20  # all pairs at once are 6 million numbers and as many places, several times over


# two levels of two codes: items at the corners of a flat rectangle
POINTS = np.array([[0, 0], [0, 1], [9, 0], [9, 1]], dtype=np.float32)
CODES = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])


def of_four_codes(last: int) -> Quantization:
    """The corners, with room: the second level has more codes, at the heights 0, 1, 2, ..."""
    books = (np.array([[0, 0], [9, 0]], np.float32), np.array([[0, y] for y in range(last)], np.float32))
    return Quantization(CODES, books, POINTS)


def test_a_new_item_takes_the_nearest_free_sequence() -> None:
    """Like item 3, whose sequence is taken: code 1, then the free height nearest to 1, which is 2; the next gets 3."""
    like_three = rows([[0, 0, 0, 1], [0, 0, 0, 1]])
    quantization = of_four_codes(4)
    quantization.points[:] = POINTS / np.linalg.norm(POINTS, axis=1, keepdims=True).clip(1) * 9  # equal lengths
    assert free_codes(like_three, quantization, (2, 4), CODES).tolist() == [[1, 2], [1, 3]]


def test_a_full_prefix_is_left_for_the_next_one() -> None:
    """Below code 1 all four are taken: the twin of item 3 goes to code 0."""
    taken = np.array([*CODES.tolist(), [1, 2], [1, 3]])
    assert free_codes(rows([[0, 0, 0, 1]]), of_four_codes(4), (2, 4), taken)[0, 0] == 0


def test_the_number_is_0_on_a_sequence_of_its_own_and_the_next_where_there_is_none() -> None:
    numbered = np.column_stack([CODES, np.zeros(4, int)])
    like_three = rows([[0, 0, 0, 1]] * 2)
    own = free_codes(like_three, of_four_codes(3), (2, 3, 4), numbered)
    assert own[:, 2].tolist() == [0, 0] and len({tuple(row) for row in [*own.tolist(), *numbered.tolist()]}) == 6
    shared = free_codes(like_three, of_four_codes(2), (2, 2, 4), numbered)
    assert shared[:, 2].tolist() == [1, 2] and shared[:, 0].tolist() == [1, 1]


def test_no_sequence_is_given_twice_until_all_are_taken() -> None:
    weights = rows(np.random.default_rng(1).dirichlet(np.ones(4), 12))
    quantization = of_four_codes(8)
    placed = free_codes(weights, quantization, (2, 8), CODES)
    assert len({tuple(row) for row in [*placed.tolist(), *CODES.tolist()]}) == 16
    with pytest.raises(UserError, match="every Semantic ID is taken"):
        free_codes(rows([[1, 0, 0, 0]]), quantization, (2, 8), np.concatenate([CODES, placed]))


def test_without_collisions_a_new_item_is_put_as_the_quantiser_puts_its_vector() -> None:
    """Published codes have no codebooks: `level_means` gives them, and a mean of points goes to its nearest."""
    draw = np.random.default_rng(2)
    vectors = draw.standard_normal((200, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    quantization = level_means(draw.integers(0, 5, (200, 3)), vectors)
    weights = rows(draw.dirichlet(np.ones(200), 20))
    expected = []
    for row in weights.toarray():
        left, codes = row @ vectors.astype(float), []
        left = left / np.linalg.norm(left)
        for book in quantization.codebooks:
            codes.append(int(np.square(book - left).sum(axis=1).argmin()))
            left = left - book[codes[-1]]
        expected.append(codes)
    nobody = np.empty((0, 3), np.int64)
    placed = [free_codes(weights[[row]], quantization, (5, 5, 5), nobody)[0].tolist() for row in range(20)]
    assert placed == expected
