from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from adagrpo.semantic_ids import embeddings
from adagrpo.semantic_ids.embeddings import (
    attribute_vectors,
    cooccurrence_vectors,
    mix,
    pair_information,
    sketched_svd,
    starting_rows,
    text_vectors,
)
from adagrpo.types import Ragged


def ragged(rows: list[list[int]]) -> Ragged:
    values = np.array([item for row in rows for item in row], dtype=np.int32)
    return Ragged(values, np.cumsum([0, *map(len, rows)]).astype(np.int64))


def unit(matrix: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    return matrix / np.where(lengths > 0, lengths, 1)


def tf_idf_twin(documents: list[list[str]], min_items: int) -> np.ndarray:
    tokens = sorted({word for document in documents for word in document})
    held = {word: sum(word in document for document in documents) for word in tokens}
    table = np.zeros((len(documents), len(tokens)))
    for row, document in enumerate(documents):
        for column, word in enumerate(tokens):
            count = document.count(word)
            if count and held[word] >= min_items:
                idf = math.log((1 + len(documents)) / (1 + held[word])) + 1
                table[row, column] = (1 + math.log(count)) * idf
    return unit(table)


def ppmi_twin(rows: list[list[int]], num_items: int, window: int) -> np.ndarray:
    counts: Counter[tuple[int, int]] = Counter()
    for row in rows:
        for here, item in enumerate(row):
            for there, other in enumerate(row):
                if here != there and abs(here - there) <= window and item != other:
                    counts[item, other] += 1
    total = sum(counts.values())
    own = [sum(count for (item, _), count in counts.items() if item == chosen) for chosen in range(num_items)]
    table = np.zeros((num_items, num_items))
    for (item, other), count in counts.items():
        table[item, other] = max(0.0, math.log(count * total / (own[item] * own[other])))
    return table


def test_full_width_attribute_vectors_keep_the_cosines_of_tf_idf() -> None:
    attributes = [["a", "b", "b"], ["b", "c"], [], ["a"], ["c", "c", "c", "d"]]
    vectors = attribute_vectors(attributes, width=6)
    table = tf_idf_twin(attributes, 1)
    assert vectors.shape == (5, 6) and vectors.dtype == np.float32
    np.testing.assert_allclose(vectors @ vectors.T, table @ table.T, rtol=1e-5, atol=1e-6)
    assert not vectors[2].any()
    assert not vectors[:, 4:].any()  # four words, so rank four at most


def test_text_vectors_lower_case_and_need_a_word_twice() -> None:
    texts = ["Red shoe!", "red SHOE", "red tent, unique", "other", ""]
    vectors = text_vectors(texts, width=4)
    table = tf_idf_twin([text.lower().replace("!", "").replace(",", "").split() for text in texts], 2)
    np.testing.assert_allclose(vectors @ vectors.T, table @ table.T, rtol=1e-5, atol=1e-6)
    assert not vectors[3:].any()
    np.testing.assert_array_equal(vectors[0], vectors[1])


@pytest.mark.parametrize("width", [2, 8])
def test_later_texts_are_placed_among_the_first_and_move_none(width: int) -> None:
    texts = ["red shoe", "red tent", "blue shoe", "blue tent", "red shoe big", "big stove"]
    alone = text_vectors(texts, width=width)
    later = ["blue tent", "wholly new words", "", "big red unheard"]
    vectors = text_vectors([*texts, *later], width=width, first=len(texts))
    np.testing.assert_array_equal(vectors[: len(texts)], alone)
    np.testing.assert_allclose(vectors[6], alone[3], rtol=1e-5, atol=1e-6)  # a text that there was
    assert not vectors[7:9].any()  # nothing that the first texts know
    assert vectors[9] @ alone[4] > 0.5
    assert (text_vectors([*texts, *later], width=width)[: len(texts)] != alone).any()  # as it was without `first`
    np.testing.assert_array_equal(text_vectors(texts, width=width, first=len(texts)), alone)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, 7), max_size=8), max_size=8),
    window=st.integers(1, 9),
    power=st.sampled_from([0.5, 1.0]),
)
def test_cooccurrence_vectors_equal_the_twin(rows: list[list[int]], window: int, power: float) -> None:
    vectors = cooccurrence_vectors(ragged(rows), 8, window=window, width=8, power=power)
    table = ppmi_twin(rows, 8, window)
    left, values, _ = np.linalg.svd(table)
    kept = values > 1e-8 * max(values[0], 1e-300)
    expected = unit(left[:, kept] * values[kept] ** power)
    expected[~table.any(axis=1)] = 0
    np.testing.assert_allclose(vectors @ vectors.T, expected @ expected.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(vectors.any(axis=1), table.any(axis=1))


def test_a_window_ends_with_its_sequence() -> None:
    vectors = cooccurrence_vectors(ragged([[0, 1], [2, 3]]), 5, window=4, width=4)
    assert np.allclose(np.linalg.norm(vectors[:4], axis=1), 1, rtol=1e-6)
    assert not vectors[4].any()
    np.testing.assert_allclose(vectors[:2] @ vectors[2:4].T, np.zeros((2, 2)), atol=1e-6)


def random_attributes(items: int = 60, words: int = 40) -> list[list[str]]:
    rng = np.random.default_rng(0)
    return [[f"w{word}" for word in rng.integers(0, words, size=5)] for _ in range(items)]


def test_truncation_matches_the_dense_decomposition_and_repeats() -> None:
    attributes = random_attributes()
    vectors = attribute_vectors(attributes, width=6)
    left, values, _ = np.linalg.svd(tf_idf_twin(attributes, 1))
    expected = unit(left[:, :6] * values[:6])
    np.testing.assert_allclose(np.abs(vectors), np.abs(expected), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(vectors, attribute_vectors(attributes, width=6))


def test_signs_are_fixed() -> None:
    vectors = attribute_vectors(random_attributes(), width=6).astype(np.float64)
    left = np.linalg.svd(tf_idf_twin(random_attributes(), 1))[0]
    peaks = np.abs(left[:, :6]).argmax(axis=0)
    assert (vectors[peaks, np.arange(6)] > 0).all()


def test_columns_beyond_the_rank_are_zero_in_the_iterative_solver_too() -> None:
    repeated = attribute_vectors([[*"abcde"], [*"fghij"]] * 6, width=4)  # rank 2, smaller side 10
    assert not repeated[:, 2:].any()
    np.testing.assert_allclose(repeated[:2] @ repeated[:2].T, np.eye(2), atol=1e-6)


def test_a_row_that_truncation_loses_is_zero_not_noise() -> None:
    vectors = attribute_vectors([["a"], ["a"], ["a"], ["b"], ["c"], ["d"]], width=1)
    np.testing.assert_allclose(vectors[:, 0], [1, 1, 1, 0, 0, 0], rtol=1e-6)


def test_empty_inputs() -> None:
    assert attribute_vectors([], width=3).shape == (0, 3)
    assert text_vectors([], width=3).shape == (0, 3)
    assert cooccurrence_vectors(ragged([]), 0, window=2, width=3).shape == (0, 3)
    for vectors in (
        attribute_vectors([[], []], width=3),
        text_vectors(["only", "once"], width=3),
        cooccurrence_vectors(ragged([[0], [], [1, 1]]), 2, window=2, width=3),
    ):
        np.testing.assert_array_equal(vectors, np.zeros((2, 3), dtype=np.float32))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="width 0"):
        attribute_vectors([["a"]], width=0)
    with pytest.raises(ValueError, match="window 0"):
        cooccurrence_vectors(ragged([[0, 1]]), 2, window=0, width=1)
    for rows in ([[0, 2]], [[-1, 0]]):
        with pytest.raises(ValueError, match=r"expected 0 \.\. 1"):
            cooccurrence_vectors(ragged(rows), 2, window=1, width=1)


def test_mix_adds_similarities_in_proportion_to_the_weights() -> None:
    parts = {
        "text": np.array([[3, 4], [4, 3], [0, 0], [0, 0]], dtype=np.float32),
        "bought": np.array([[2, 0, 0], [0, 0, 5], [0, 7, 0], [0, 0, 0]], dtype=np.float32),
    }
    mixed = mix(parts, {"bought": 1.0, "text": 3.0})
    assert mixed.shape == (4, 5) and mixed.dtype == np.float32
    assert mixed[0] @ mixed[1] == pytest.approx((3 * 24 / 25 + 1 * 0) / 4, rel=1e-5)
    np.testing.assert_allclose(mixed[2], [0, 0, 0, 1, 0], rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(mixed, axis=1), [1, 1, 1, 0.01], rtol=1e-5)


def test_mix_gives_silent_items_their_own_repeatable_direction() -> None:
    parts = {"text": np.array([[0, 0], [1, 0], [0, 0]], dtype=np.float32)}
    mixed = mix(parts, {"text": 1.0})
    assert not np.array_equal(mixed[0], mixed[2])
    np.testing.assert_array_equal(mixed, mix(parts, {"text": 1.0}))
    assert not np.array_equal(mixed, mix(parts, {"text": 1.0}, seed=1))
    unweighted = mix(parts, {"text": 0.0})
    np.testing.assert_allclose(np.linalg.norm(unweighted, axis=1), 0.01, rtol=1e-5)
    assert mix({"text": np.zeros((0, 2), dtype=np.float32)}, {"text": 1.0}).shape == (0, 2)


@pytest.mark.parametrize(
    ("parts", "weights", "message"),
    [
        ({}, {}, "at least one"),
        ({"a": 2}, {"b": 1.0}, "expected the same"),
        ({"a": 2, "b": 3}, {"a": 1.0, "b": 1.0}, "same number"),
        ({"a": 2}, {"a": -1.0}, "weight of a is -1.0"),
        ({"a": 2}, {"a": math.nan}, "weight of a is nan"),
    ],
)
def test_mix_names_what_is_wrong(parts: dict[str, int], weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mix({name: np.ones((rows, 2), dtype=np.float32) for name, rows in parts.items()}, weights)


def random_log(seed: int = 0) -> Ragged:
    rng = np.random.default_rng(seed)
    return ragged([rng.integers(0, 30, size).tolist() for size in rng.integers(0, 12, 60)])


@pytest.mark.parametrize("block", [1, 40, 2**25])
def test_pairs_that_are_counted_some_items_at_a_time_are_all_pairs(block: int) -> None:
    log = random_log()
    rows = [log.row(row).tolist() for row in range(len(log))]
    found = pair_information(log, 30, 3, block=block)
    np.testing.assert_allclose(found.toarray(), ppmi_twin(rows, 30, 3), rtol=1e-12)
    np.testing.assert_array_equal(found.data, pair_information(log, 30, 3).data)


def test_more_pairs_than_fit_leave_each_item_its_neighbours_of_most_information() -> None:
    log = random_log()
    rows = [log.row(row).tolist() for row in range(len(log))]
    table, counts = ppmi_twin(rows, 30, 3), Counter[tuple[int, int]]()
    for row in rows:
        for here, item in enumerate(row):
            counts.update((item, other) for other in row[max(0, here - 3) : here + 4] if other != item)
    weight = np.array([[counts[i, j] * table[i, j] for j in range(30)] for i in range(30)], np.float32)
    found = pair_information(log, 30, 3, most=5 * 30, block=100).toarray()
    for item in range(30):
        expected = [j for j in np.argsort(-weight[item], kind="stable")[:5] if weight[item, j] > 0]
        np.testing.assert_array_equal(np.flatnonzero(found[item]), sorted(expected))
        np.testing.assert_allclose(found[item, expected], table[item, expected], rtol=1e-6)


def test_the_sketch_finds_the_values_and_the_space_of_the_exact_solver() -> None:
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(size, 12)))[0] for size in (300, 200))
    matrix = sparse.csr_array(left * 2.0 ** -np.arange(12) @ right.T)
    vectors, values = sketched_svd(matrix, 8)
    assert vectors.shape == (300, 8) and vectors.dtype == np.float32
    np.testing.assert_allclose(values, 2.0 ** -np.arange(8), rtol=1e-5)
    np.testing.assert_allclose(np.abs(vectors.T @ left[:, :8]), np.eye(8), atol=1e-3)  # float32, values of 2^-7
    np.testing.assert_array_equal(vectors, sketched_svd(matrix, 8)[0])


def test_the_sketch_leaves_out_what_is_beyond_the_rank() -> None:
    matrix = sparse.csr_array(np.outer(np.arange(1.0, 41), np.ones(30)))
    vectors, values = sketched_svd(matrix, 8)
    assert vectors.shape == (40, 1)
    np.testing.assert_allclose(values, [np.linalg.norm(matrix.toarray())], rtol=1e-6)


def test_rows_that_are_scaled_some_at_a_time_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def vectors() -> np.ndarray:
        parts = {"a": attribute_vectors(random_attributes(), width=8), "c": np.zeros((60, 3), np.float32)}
        parts["a"][[3, 50]] = 0
        return mix(parts, {"a": 1.0, "c": 2.0}, seed=4)

    whole = vectors()
    monkeypatch.setattr(embeddings, "_ROWS", 7)
    np.testing.assert_array_equal(vectors(), whole)


def test_starting_rows_keep_what_the_principal_directions_hold() -> None:
    vectors = mix({"a": attribute_vectors(random_attributes(), width=24)}, {"a": 1.0})
    values = np.linalg.svd(vectors.astype(np.float64), compute_uv=False)
    for width in (4, 16, 32):
        rows = starting_rows(vectors, width, 0.3, seed=5).astype(np.float64)
        assert rows.shape == (60, width)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1).mean(), 0.3, rtol=1e-5)
        found = np.linalg.svd(rows, compute_uv=False)[: min(width, 24)]
        np.testing.assert_allclose(found / found[0], values[: min(width, 24)] / values[0], atol=1e-5)
        spread = np.square(rows).mean(axis=0)  # without the turn the first number holds most
        assert spread.max() < 12 * np.median(spread)
    assert not np.allclose(rows, starting_rows(vectors, 32, 0.3, seed=6))
