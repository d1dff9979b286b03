from __future__ import annotations

import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from adagrpo.errors import UserError
from adagrpo.semantic_ids import catalog
from adagrpo.semantic_ids.catalog import move_to_free_codes, resolve_collisions, sequence_groups
from adagrpo.semantic_ids.published import import_semantic_ids
from adagrpo.semantic_ids.quantization import Quantization, level_means, residual_kmeans


@settings(max_examples=60, deadline=None)
@given(codes=hnp.arrays(np.int64, st.tuples(st.integers(0, 60), st.integers(1, 3)), elements=st.integers(0, 3)))
def test_resolve_collisions_equals_counting_in_a_loop(codes: np.ndarray) -> None:
    seen: Counter[tuple[int, ...]] = Counter()
    expected = []
    for row in map(tuple, codes.tolist()):
        expected.append([*row, seen[row]])
        seen[row] += 1
    resolved = resolve_collisions(codes)
    assert resolved.shape == (len(codes), codes.shape[1] + 1) and resolved.dtype == np.int64
    assert resolved.tolist() == expected


def test_resolve_collisions_needs_a_matrix() -> None:
    with pytest.raises(ValueError, match="expected"):
        resolve_collisions(np.arange(3))


def moved_twin(codes: list[tuple[int, ...]], left: list[float], book: list[float]) -> list[tuple[int, ...]]:
    """Prefix by prefix: the nearest item of a sequence stays, then the closest pair of mover and free code, and on."""
    result = list(codes)
    for prefix in {row[:-1] for row in codes}:
        members = [item for item, row in enumerate(codes) if row[:-1] == prefix]
        stay = {}
        for item in members:
            gap = ((left[item] - book[codes[item][-1]]) ** 2, item)
            stay[codes[item][-1]] = min(stay.get(codes[item][-1], gap), gap)
        free = set(range(len(book))) - set(stay)
        moving = set(members) - {item for _, item in stay.values()}
        while moving:
            _, item, code = min(((left[item] - book[code]) ** 2, item, code) for item in moving for code in free)
            result[item] = (*prefix, code)
            moving.remove(item)
            free.remove(code)
    return result


@settings(max_examples=60, deadline=None)
@given(
    prefixes=st.lists(st.integers(0, 2), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
    whole=st.booleans(),
)
def test_moving_equals_the_loop(prefixes: list[int], seed: int, whole: bool) -> None:
    rng = np.random.default_rng(seed)
    draw = (lambda size: rng.integers(0, 4, size).astype(float)) if whole else rng.normal  # whole: ties
    left, book = draw(size=len(prefixes)), draw(size=6)
    codes = np.column_stack([prefixes, rng.integers(0, 2, size=len(prefixes))])
    first = np.arange(3, dtype=np.float32)[:, None] * 64
    points = first[codes[:, 0]] + left[:, None].astype(np.float32)
    quantization = Quantization(codes, (first, book[:, None].astype(np.float32)), points)
    exact = (
        quantization.residual(1)[:, 0].astype(float).tolist(),
        quantization.codebooks[1][:, 0].astype(float).tolist(),
    )
    actual = move_to_free_codes(quantization)
    assert list(map(tuple, actual.tolist())) == moved_twin(list(map(tuple, codes.tolist())), *exact)
    assert len(np.unique(actual, axis=0)) == len(actual)


def crowd(items: int, codes: int, width: int) -> Quantization:
    """Items that all have the first code of one level."""
    draw = np.random.default_rng(0)
    book, points = (draw.normal(size=(count, width)).astype(np.float32) for count in (codes, items))
    return Quantization(np.zeros((items, 1), dtype=np.int64), (book,), points)


def test_blocks_of_items_move_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = move_to_free_codes(crowd(40, 50, 6))
    monkeypatch.setattr(catalog, "_NUMBERS", 2000)  # of 49 free codes with six numbers each: six items at a time
    assert np.array_equal(move_to_free_codes(crowd(40, 50, 6)), whole)


def test_many_items_on_one_sequence_are_moved_in_bounded_memory() -> None:
    quantization = crowd(512, 600, 64)
    tracemalloc.start()
    moved = move_to_free_codes(quantization)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.unique(moved)) == 512 and peak < 64 * 2**20  # all differences at once take 157 MB, and their squares


def test_one_level_moves_too_and_the_codes_given_stay_as_they_are() -> None:
    book = np.array([[0.0], [1.0], [5.0]], dtype=np.float32)
    codes = np.array([[0], [0], [2]])
    quantization = Quantization(codes, (book,), np.array([[0.1], [0.4], [4.0]], dtype=np.float32))
    assert move_to_free_codes(quantization).tolist() == [[0], [1], [2]]
    assert codes.tolist() == [[0], [0], [2]]


def test_a_prefix_with_more_items_than_codes_is_refused() -> None:
    book = np.zeros((2, 1), dtype=np.float32)
    quantization = Quantization(np.zeros((3, 2), dtype=np.int64), (book, book), np.zeros((3, 1), dtype=np.float32))
    with pytest.raises(UserError, match="3 items share their first 1 codes and level 2 has 2; take more codes"):
        move_to_free_codes(quantization)


def test_a_level_that_few_vectors_were_left_for_gets_the_codes_that_it_may_have() -> None:
    points = np.array([[1.0], [2.0], [2.0]], dtype=np.float32)  # nothing is left over after the first level
    quantization = residual_kmeans(points, levels=2, codes=4, seed=0)
    assert [len(book) for book in quantization.codebooks] == [2, 1]
    assert move_to_free_codes(quantization, 4)[:, 1].tolist() == [0, 0, 1]
    with pytest.raises(UserError, match="2 items share their first 1 codes and level 2 has 1"):
        move_to_free_codes(quantization, 1)


BEAUTY = Path(__file__).parents[3] / "shared" / "data" / "amazon-beauty" / "semantic_ids.parquet"


@pytest.mark.shared_data
@pytest.mark.skipif(not BEAUTY.is_file(), reason="the research data are not here")
@pytest.mark.parametrize(
    ("column", "distinct"),
    [
        ("letter_official", 12088),
        ("rqvae_native", 11499),
        ("rkmeans_native", 10527),
        ("letter_native", 12015),
        ("rqvae_zcr", 12101),
        ("rkmeans_zcr", 12101),
        ("mql4grec", 12101),
    ],
)
def test_published_codes_of_beauty_either_way(column: str, distinct: int) -> None:
    """The counts are those that the data's own description gives."""
    ids = pl.Series(np.random.default_rng(0).permutation(12101).astype(str))
    codes = import_semantic_ids(BEAUTY, ids, column=column)
    assert codes.shape == (12101, 4) and len(np.unique(codes, axis=0)) == distinct
    vectors = np.random.default_rng(1).normal(size=(12101, 4)).astype(np.float32)
    for actual in (resolve_collisions(codes), move_to_free_codes(level_means(codes, vectors))):
        assert len(np.unique(actual, axis=0)) == 12101
        assert (actual[:, :3] == codes[:, :3]).all()
        assert (actual[:, :4] != codes).any(axis=1).sum() in (0, 12101 - distinct)


@settings(max_examples=60, deadline=None)
@given(codes=hnp.arrays(np.int64, st.tuples(st.integers(1, 40), st.integers(1, 3)), elements=st.integers(-2, 3)))
def test_groups_of_sequences_are_those_of_the_sorted_rows(codes: np.ndarray) -> None:
    groups, counts = sequence_groups(codes)
    _, expected, sizes = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    assert groups.tolist() == expected.reshape(-1).tolist() and counts.tolist() == sizes.tolist()
