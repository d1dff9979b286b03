from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from adagrpo.semantic_ids.quantization import _lloyd, residual_kmeans, resolve_collisions

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
    ],
)
def test_bad_arguments(vectors: np.ndarray, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        residual_kmeans(vectors, **{"levels": 1, "codes": 2, "seed": 0, **options})


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
