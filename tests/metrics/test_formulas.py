"""Metrics against hand-worked numbers and loops."""

import math

import numpy as np
import pytest

from adagrpo.metrics import coverage, hallucination, hit_rate, ndcg, recall, tail_items, tail_share, target_rank_in


def test_rank_by_hand() -> None:
    ranked = np.array([[5, 6, 7], [-1, 6, 5], [1, 2, 3], [-1, -1, -1], [4, 4, 4]])
    actual = target_rank_in(ranked, np.array([5, 5, 5, 5, 4]))
    assert actual.dtype == np.int64
    assert actual.tolist() == [1, 3, 0, 0, 1]
    assert target_rank_in(np.array([[-1]]), np.array([-1])).tolist() == [0]
    assert target_rank_in(np.zeros((0, 3), dtype=np.int64), np.zeros(0, dtype=np.int64)).shape == (0,)


def test_hit_rate_and_ndcg_by_hand() -> None:
    ranks = np.array([1, 2, 3, 4, 0])
    assert hit_rate(ranks, 3).tolist() == [1.0, 1.0, 1.0, 0.0, 0.0]
    np.testing.assert_allclose(ndcg(ranks, 3), [1.0, math.log(2) / math.log(3), 0.5, 0.0, 0.0], rtol=1e-12)


def test_hallucination_and_coverage_by_hand() -> None:
    valid = np.array([[True, True, False], [False, False, False], [True, True, True]])
    np.testing.assert_allclose(hallucination(valid, 2), [0.0, 1.0, 0.0])
    np.testing.assert_allclose(hallucination(valid, 3), [1 / 3, 1.0, 0.0])
    ranked = np.array([[0, 1, 2], [1, -1, 3]])
    assert coverage(ranked, 1, 8) == 0.25
    assert coverage(ranked, 3, 8) == 0.5
    assert coverage(np.full((2, 2), -1), 2, 8) == 0.0


def test_tail_share_by_hand() -> None:
    tail = np.array([False, True, True, False])
    ranked = np.array([[1, 0, 2], [-1, 1, 0], [-1, -1, 1], [0, 3, 0]])
    np.testing.assert_allclose(tail_share(ranked, 2, tail), [0.5, 1.0, 0.0, 0.0])
    np.testing.assert_allclose(tail_share(ranked, 3, tail), [2 / 3, 0.5, 1.0, 0.0])


@pytest.mark.parametrize("k", [1, 4, 7])
def test_lists_equal_the_loops(k: int) -> None:
    rng = np.random.default_rng(k)
    ranked = np.stack([rng.permutation(20)[:7] for _ in range(60)])
    ranked[rng.random(ranked.shape) < 0.3] = -1
    targets = rng.integers(0, 20, 60)
    tail = rng.random(20) < 0.4
    ranks = target_rank_in(ranked, targets)
    hits, gains = hit_rate(ranks, k), ndcg(ranks, k)
    invalid, tails = hallucination(ranked >= 0, k), tail_share(ranked, k, tail)
    seen: set[int] = set()
    for u, row in enumerate(ranked.tolist()):
        target = int(targets[u])
        rank = row.index(target) + 1 if target in row else 0
        named = [item for item in row[:k] if item >= 0]
        seen.update(named)
        assert ranks[u] == rank
        assert hits[u] == float(target in row[:k])
        assert gains[u] == pytest.approx(1 / math.log2(1 + rank) if target in row[:k] else 0.0, rel=1e-12)
        assert invalid[u] == pytest.approx(sum(item < 0 for item in row[:k]) / k, rel=1e-12)
        assert tails[u] == pytest.approx(sum(tail[i] for i in named) / len(named) if named else 0.0, rel=1e-12)
    assert coverage(ranked, k, 20) == pytest.approx(len(seen) / 20, rel=1e-12)


@pytest.mark.parametrize(
    ("popularity", "share", "expected"),
    [
        ([6, 1, 1, 2], 0.2, [0, 1, 1, 0]),  # 1 + 1 of 10
        ([6, 1, 1, 2], 0.4, [0, 1, 1, 1]),  # 4 of 10
        ([6, 1, 1, 2], 0.39, [0, 1, 1, 0]),
        ([5, 5, 5, 5], 0.5, [1, 1, 0, 0]),  # ties by index
        ([0, 3, 0], 0.0, [1, 0, 1]),  # never interacted with
        ([0, 0], 0.2, [1, 1]),
        ([1, 2], 1.0, [1, 1]),
        ([29, 71], 0.29, [1, 0]),  # 0.29 * 100 rounds to less than 29
        ([7], 0.2, [0]),
        ([], 0.2, []),
    ],
)
def test_tail_items_by_hand(popularity: list[int], share: float, expected: list[int]) -> None:
    assert tail_items(np.array(popularity, dtype=np.int64), share).astype(int).tolist() == expected


def test_tail_items_equals_the_loop() -> None:
    rng = np.random.default_rng(0)
    for share in (0.05, 0.2, 0.5):
        popularity = rng.integers(0, 9, 50)
        expected, held = np.zeros(50, dtype=bool), 0
        for item in sorted(range(50), key=lambda i: (popularity[i], i)):
            held += int(popularity[item])
            if held > share * int(popularity.sum()):
                break
            expected[item] = True
        assert tail_items(popularity, share).tolist() == expected.tolist()


def test_wrong_arguments_are_named() -> None:
    ranked = np.zeros((2, 3), dtype=np.int64)
    with pytest.raises(ValueError, match=r"^targets: "):
        target_rank_in(ranked, np.zeros(3, dtype=np.int64))
    with pytest.raises(ValueError, match=r"^ranked: "):
        target_rank_in(ranked[0], np.zeros(3, dtype=np.int64))
    with pytest.raises(ValueError, match=r"^k: "):
        hit_rate(np.array([1]), 0)
    with pytest.raises(ValueError, match=r"^ranks: "):
        hit_rate(ranked[None], 1)
    with pytest.raises(ValueError, match=r"^sizes: "):
        ndcg(ranked, 1)
    with pytest.raises(ValueError, match=r"^k: expected from 1 to the width of valid, 3, found 4"):
        hallucination(ranked == 0, 4)
    with pytest.raises(ValueError, match=r"^valid: a mask"):
        hallucination(ranked.astype(np.float64), 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^ranked: item 5 is outside the catalogue of 5 items"):
        coverage(np.array([[5]]), 1, 5)
    with pytest.raises(ValueError, match=r"^num_items: "):
        coverage(ranked, 1, 0)
    with pytest.raises(ValueError, match=r"^tail: "):
        tail_share(ranked, 1, np.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^popularity: "):
        tail_items(np.array([1, -1]))
    with pytest.raises(ValueError, match=r"^share: "):
        tail_items(np.array([1]), share=1.5)


def test_baskets_by_hand() -> None:
    ranked = np.array([[7, 4, 9, 5, -1], [1, 2, 3, 4, 5]])
    ranks = target_rank_in(ranked, np.array([[9, 7, 8], [6, -1, -1]]))
    assert ranks.tolist() == [[3, 1, 0], [0, 0, 0]]
    sizes = np.array([3, 1])
    assert hit_rate(ranks, 2).tolist() == [1, 0]
    assert recall(ranks, 2, sizes).tolist() == [0.5, 0]  # one of at most two
    assert recall(ranks, 5, sizes).tolist() == [pytest.approx(2 / 3), 0]
    ideal = 1 + 1 / np.log2(3) + 1 / np.log2(4)
    assert ndcg(ranks, 5, sizes).tolist() == [pytest.approx((1 + 0.5) / ideal), 0]
    one = np.array([2, 0, 11])
    assert np.array_equal(ndcg(one, 10), ndcg(one[:, None], 10, np.ones(3, np.int64)))
