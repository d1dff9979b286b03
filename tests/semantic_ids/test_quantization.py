from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from adagrpo.semantic_ids import quantization
from adagrpo.semantic_ids.quantization import (
    Quantization,
    _lloyd,
    assign_within,
    level_means,
    reconstruction_error,
    residual_kmeans,
)

torch.set_num_threads(2)


def blobs(seed: int = 0, clusters: int = 8, each: int = 20, width: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(clusters, width)) * 20
    labels = np.repeat(np.arange(clusters), each)
    return (centres[labels] + rng.normal(size=(len(labels), width)) * 0.1).astype(np.float32), labels


def test_well_separated_clusters_are_found() -> None:
    vectors, labels = blobs()
    result = residual_kmeans(vectors, levels=1, codes=8, seed=0)
    pairs = {(label, code) for label, code in zip(labels.tolist(), result.codes[:, 0].tolist(), strict=True)}
    assert len(pairs) == 8
    for label, code in pairs:
        mean = vectors[labels == label].astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(result.codebooks[0][code], mean, rtol=1e-5)


def test_levels_quantise_what_is_left_over() -> None:
    vectors = np.random.default_rng(1).normal(size=(300, 5)).astype(np.float32)
    result = residual_kmeans(vectors, levels=3, codes=16, seed=3, iterations=100)
    assert result.codes.shape == (300, 3) and result.codes.dtype == np.int64
    assert result.level_sizes == (16, 16, 16)
    residual = vectors.copy()
    errors = [float((residual**2).sum())]
    for level, codebook in enumerate(result.codebooks):
        assert codebook.dtype == np.float32
        distances = ((residual[:, None].astype(np.float64) - codebook[None]) ** 2).sum(axis=2)
        chosen = result.codes[:, level]
        np.testing.assert_allclose(distances[np.arange(300), chosen], distances.min(axis=1), rtol=1e-5, atol=1e-6)
        for code in range(16):  # converged: every centroid is the mean of its items
            np.testing.assert_allclose(codebook[code], residual[chosen == code].mean(axis=0), rtol=1e-4, atol=1e-6)
        residual = residual - codebook[chosen]
        errors.append(float((residual**2).sum()))
    assert errors[0] > errors[1] > errors[2] > errors[3]
    np.testing.assert_allclose(result.reconstruct(), vectors - residual, rtol=1e-5, atol=1e-5)


def test_equal_seeds_give_equal_codes_and_leave_the_global_generator_alone() -> None:
    vectors = np.random.default_rng(2).normal(size=(200, 4)).astype(np.float32)
    state = torch.random.get_rng_state()
    first, again, other = (residual_kmeans(vectors, levels=2, codes=8, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert np.array_equal(first.codes, again.codes)
    assert not np.array_equal(first.codes, other.codes)


def test_fewer_distinct_vectors_than_codes_give_fewer_codes() -> None:
    vectors = np.array([[1, 0], [0, 1], [1, 0], [0, 1], [1, 0]], dtype=np.float32)
    result = residual_kmeans(vectors, levels=2, codes=256, seed=0)
    assert result.level_sizes == (2, 1)
    assert result.codes[:, 0].tolist() in ([0, 1, 0, 1, 0], [1, 0, 1, 0, 1])
    np.testing.assert_array_equal(result.reconstruct(), vectors)


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_equal_vectors_share_one_code(value: float) -> None:
    result = residual_kmeans(np.full((7, 3), value, dtype=np.float32), levels=3, codes=4, seed=0)
    assert result.level_sizes == (1, 1, 1)
    assert not result.codes.any()


def test_an_empty_cluster_is_seeded_again_at_the_farthest_item() -> None:
    points = torch.tensor([[0.0], [1.0], [2.0], [30.0]])
    centroids, nearest = _lloyd(points, torch.tensor([[0.0], [500.0]]), 1)
    assert nearest.tolist() == [0, 0, 0, 1]
    assert centroids.tolist() == [[8.25], [30.0]]
    centroids, nearest = _lloyd(points, torch.tensor([[0.0], [500.0]]), 9)
    assert nearest.tolist() == [0, 0, 0, 1]
    assert centroids.tolist() == [[1.0], [30.0]]


def test_one_item() -> None:
    result = residual_kmeans(np.ones((1, 2), dtype=np.float32), levels=2, codes=4, seed=0)
    assert result.codes.tolist() == [[0, 0]]


@settings(max_examples=40, deadline=None)
@given(
    vectors=hnp.arrays(
        np.float32, st.tuples(st.integers(1, 40), st.integers(1, 4)), elements=st.integers(-3, 3).map(float)
    ),
    codes=st.integers(1, 12),
)
def test_ties_and_duplicates_never_break_it(vectors: np.ndarray, codes: int) -> None:
    result = residual_kmeans(vectors, levels=2, codes=codes, seed=1)
    sizes = result.level_sizes
    assert all(1 <= size <= min(codes, len(vectors)) for size in sizes)
    assert (result.codes >= 0).all() and (result.codes < np.array(sizes)).all()
    assert all(np.isfinite(codebook).all() for codebook in result.codebooks)


@pytest.mark.parametrize(
    ("vectors", "options"),
    [
        (np.empty((0, 3), dtype=np.float32), {}),
        (np.ones(3, dtype=np.float32), {}),
        (np.array([[np.nan]], dtype=np.float32), {}),
        (np.ones((2, 2), dtype=np.float32), {"levels": 0}),
        (np.ones((2, 2), dtype=np.float32), {"codes": 0}),
        (np.ones((2, 2), dtype=np.float32), {"iterations": -1}),
        (np.ones((2, 2), dtype=np.float32), {"cluster_bound": 0.9}),
        (np.ones((2, 2), dtype=np.float32), {"cluster_bound": np.inf}),
    ],
)
def test_bad_arguments(vectors: np.ndarray, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        residual_kmeans(vectors, **{"levels": 1, "codes": 2, "seed": 0, **options})


@pytest.mark.parametrize("bound", [1.0, 1.1, 2.0])
def test_balanced_clusters_keep_their_bound(bound: float) -> None:
    rng = np.random.default_rng(4)
    vectors = np.concatenate([rng.normal(size=(150, 4)) * 0.1, rng.normal(size=(50, 4)) * 5]).astype(np.float32)
    plain = residual_kmeans(vectors, levels=2, codes=10, seed=0)
    balanced, again = (residual_kmeans(vectors, levels=2, codes=10, seed=0, cluster_bound=bound) for _ in range(2))
    most = round(bound * 20)
    assert max(np.bincount(plain.codes[:, 0])) > most
    assert all(np.bincount(column).max() <= most for column in balanced.codes.T)
    np.testing.assert_array_equal(balanced.codes, again.codes)


def test_a_bound_that_nothing_reaches_changes_nothing() -> None:
    vectors = np.random.default_rng(5).normal(size=(80, 3)).astype(np.float32)
    plain = residual_kmeans(vectors, levels=2, codes=8, seed=2)
    balanced = residual_kmeans(vectors, levels=2, codes=8, seed=2, cluster_bound=8)
    np.testing.assert_array_equal(balanced.codes, plain.codes)


def test_a_bound_of_one_spreads_equal_vectors_over_the_codes_there_are() -> None:
    vectors = np.array([[0], [0], [0], [9]], dtype=np.float32)
    result = residual_kmeans(vectors, levels=1, codes=4, seed=0, cluster_bound=1)
    assert result.level_sizes == (2,) and np.bincount(result.codes[:, 0]).tolist() == [2, 2]


def test_residuals_and_points() -> None:
    vectors = np.random.default_rng(6).normal(size=(30, 3)).astype(np.float32)
    result = residual_kmeans(vectors, levels=2, codes=4, seed=0)
    np.testing.assert_array_equal(result.residual(0), vectors)
    np.testing.assert_array_equal(result.residual(1), vectors - result.codebooks[0][result.codes[:, 0]])
    np.testing.assert_allclose(result.residual(2), vectors - result.reconstruct(), rtol=1e-5, atol=1e-6)


def test_level_means_by_hand() -> None:
    codes = np.array([[0, 1], [0, 3], [2, 1]])
    vectors = np.array([[1.0], [3.0], [8.0]], dtype=np.float32)
    actual = level_means(codes, vectors)
    # level 1: means 2 and 8, and 4 for the code that nothing has; left over -1, 1, 0
    np.testing.assert_allclose(actual.codebooks[0][:, 0], [2, 4, 8], rtol=1e-6)
    np.testing.assert_allclose(actual.codebooks[1][:, 0], [0, -0.5, 0, 1], rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(actual.codes, codes)
    with pytest.raises(ValueError, match="expected"):
        level_means(codes, vectors[:2])


def test_level_means_find_the_codebooks_of_converged_kmeans() -> None:
    vectors = np.random.default_rng(7).normal(size=(60, 3)).astype(np.float32)
    made = residual_kmeans(vectors, levels=2, codes=5, seed=0, iterations=100)
    for actual, expected in zip(level_means(made.codes, vectors).codebooks, made.codebooks, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_the_reconstruction_error_is_a_share_of_the_variance() -> None:
    vectors = np.array([[0.0, 1.0], [2.0, 1.0]], dtype=np.float32)
    assert reconstruction_error(vectors, vectors) == 0
    assert reconstruction_error(vectors, np.array([[1, 1], [1, 1]], dtype=np.float32)) == pytest.approx(1, rel=1e-6)
    assert reconstruction_error(vectors, vectors + np.float32(0.5)) == pytest.approx(4 * 0.25 / 2, rel=1e-6)
    assert reconstruction_error(vectors[:1], vectors[:1] + 1) == 0
    with pytest.raises(ValueError, match="expected the same"):
        reconstruction_error(vectors, vectors[:1])


def test_what_was_encoded_is_decoded() -> None:
    codebook = np.array([[1.0], [2.0]], dtype=np.float32)
    points = np.array([[1.0], [2.0]], dtype=np.float32)
    quantization = Quantization(np.array([[1], [0]]), (codebook,), points, lambda found: found * 10)
    assert quantization.reconstruct().tolist() == [[20.0], [10.0]]


def test_more_items_than_are_fitted_on_each_take_their_nearest_code(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels = blobs(each=40)
    monkeypatch.setattr(quantization, "FITTED", 0)
    monkeypatch.setattr(quantization, "A_CODE", 10)
    result = residual_kmeans(vectors, levels=1, codes=8, seed=0)
    assert len(set(zip(labels.tolist(), result.codes[:, 0].tolist(), strict=True))) == 8
    gaps = np.square(vectors[:, None] - result.codebooks[0]).sum(axis=2)
    np.testing.assert_array_equal(result.codes[:, 0], gaps.argmin(axis=1))
    means = np.stack([vectors[labels == labels[result.codes[:, 0] == code][0]].mean(axis=0) for code in range(8)])
    assert 1e-4 < np.abs(result.codebooks[0] - means).max() < 0.1  # means of ten in forty, not of all


def test_points_and_numbers_that_are_taken_some_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(1).normal(size=(300, 5)).astype(np.float32)
    whole = residual_kmeans(vectors, levels=2, codes=16, seed=3)
    error = reconstruction_error(vectors, whole.reconstruct())
    for name, size in (("DISTANCES", 16 * 40), ("_NUMBERS", 5 * 40), ("_ROWS", 40)):
        monkeypatch.setattr(quantization, name, size)
    parts = residual_kmeans(vectors, levels=2, codes=16, seed=3)
    np.testing.assert_array_equal(parts.codes, whole.codes)
    assert reconstruction_error(vectors, parts.reconstruct()) == pytest.approx(error, rel=1e-12)


def greedy(distances: np.ndarray, capacities: list[int]) -> list[int]:
    """All pairs from the closest on, each made if the point is free and the place has room."""
    chosen, room = [-1] * len(distances), list(capacities)
    points, places = distances.shape
    for _, point, place in sorted((distances[i, k], i, k) for i in range(points) for k in range(places)):
        if chosen[point] < 0 and room[place]:
            chosen[point] = place
            room[place] -= 1
    return chosen


@settings(max_examples=80, deadline=None)
@given(
    capacities=st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any),
    spare=st.integers(0, 4),
    seed=st.integers(0, 1000),
)
def test_it_is_the_greedy_loop(capacities: list[int], spare: int, seed: int) -> None:
    points = max(sum(capacities) - spare, 0)
    distances = np.random.default_rng(seed).normal(size=(points, len(capacities)))
    assert assign_within(distances, np.array(capacities)).tolist() == greedy(distances, capacities)


@settings(max_examples=80, deadline=None)
@given(
    capacities=st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any),
    seed=st.integers(0, 1000),
)
def test_ties_go_to_the_lower_point(capacities: list[int], seed: int) -> None:
    rows = np.random.default_rng(seed).integers(0, 3, size=sum(capacities)).astype(float)
    distances = np.repeat(rows[:, None], len(capacities), axis=1)  # every place equally far
    assert assign_within(distances, np.array(capacities)).tolist() == greedy(distances, capacities)


def test_whoever_is_turned_away_goes_to_the_next_best_and_may_push_another_on() -> None:
    distances = np.array([[0.0, 4.0, 9.0], [1.0, 2.0, 9.0], [5.0, 1.0, 3.0]])
    assert assign_within(distances, np.array([1, 1, 1])).tolist() == [0, 2, 1]
    assert assign_within(distances, np.array([3, 3, 3])).tolist() == [0, 0, 1]


def test_no_point_needs_no_place() -> None:
    assert assign_within(np.empty((0, 2)), np.array([0, 1])).tolist() == []


@pytest.mark.parametrize(
    ("distances", "capacities"),
    [
        (np.zeros((3, 2)), [1, 1]),
        (np.zeros((1, 2)), [2, -1]),
        (np.zeros((1, 2)), [1]),
        (np.zeros(2), [1, 1]),
        (np.full((1, 1), np.nan), [1]),
    ],
)
def test_bad_distances_and_capacities(distances: np.ndarray, capacities: list[int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        assign_within(distances, np.array(capacities))
