"""The map of the uplift, against a loop over the cases, and against what can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from adagrpo.diagnosis.maps import uplift_map
from adagrpo.diagnosis.orders import Lists

FEW = 200
N, W = 60, 20


def lists_of(seed: int) -> tuple[Lists, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    items = np.stack([generator.permutation(40)[:W] for _ in range(N)])
    items[:5, -3:] = -1
    log_probs = -np.sort(generator.random((N, W)), axis=1)
    rewards = generator.normal(size=(N, W))
    targets = generator.integers(0, 40, N)
    own = generator.normal(size=N)
    at = (items == targets[:, None]).nonzero()
    own[at[0]] = rewards[at]
    return Lists(items, log_probs, rewards, targets), own, generator.random(N)


def rank_of(case: int, lists: Lists, keys: np.ndarray) -> int:
    """The rank of the logged item in one list, 0 where it is not in it."""
    usable = [place for place in range(W) if lists.items[case, place] >= 0]
    order = sorted(usable, key=lambda place: -keys[case, place])
    found = [place for place, index in enumerate(order, 1) if lists.items[case, index] == lists.targets[case]]
    return found[0] if found else 0


def band_of(case: int, lists: Lists, own: float) -> str:
    others = [
        lists.rewards[case, place]
        for place in range(W)
        if lists.items[case, place] >= 0 and lists.items[case, place] != lists.targets[case]
    ]
    q = sum(1.0 if own > other else 0.5 if own == other else 0.0 for other in others) / len(others)
    return "q < 0.5" if q < 0.5 else "0.5 to 0.8" if q < 0.8 else "0.8 to 0.95" if q < 0.95 else "q ≥ 0.95"


def test_cells_against_a_loop() -> None:
    lists, own, nll = lists_of(0)
    result = uplift_map(lists, own, nll, resamples=FEW, seed=0)
    low, high = np.quantile(nll, [1 / 3, 2 / 3])
    expected: dict[tuple[str, str], list[float]] = {}
    for case in range(N):
        third = "low" if nll[case] <= low else "middle" if nll[case] <= high else "high"
        change = (0 < rank_of(case, lists, lists.rewards) <= 10) - (0 < rank_of(case, lists, lists.log_probs) <= 10)
        expected.setdefault((third, band_of(case, lists, own[case])), []).append(float(change))
    assert sum(cell["ranker"]["cases"] for cell in result["cells"]) == N
    for cell in result["cells"]:
        third = next(word for word in ("low", "middle", "high") if word in cell["difficulty"].split())
        values = expected.get((third, cell["discriminability"]), [])
        assert cell["ranker"]["cases"] == len(values)
        if values:
            assert cell["ranker"]["hr@10"]["mean"] == pytest.approx(np.mean(values), abs=1e-12)
        else:
            assert cell["ranker"]["hr@10"] is None and cell["ranker"]["ndcg@10"] is None


def test_the_shuffled_ranker_forms_cells_of_its_own() -> None:
    """Five draws are averaged, so that its cases are those of the map again, in fifths."""
    lists, own, nll = lists_of(1)
    cells = uplift_map(lists, own, nll, resamples=FEW, seed=0)["cells"]
    assert sum(cell["shuffled"]["cases"] for cell in cells) == pytest.approx(N, rel=1e-12)
    fifths = [5 * cell["shuffled"]["cases"] for cell in cells]
    assert fifths == pytest.approx([round(count) for count in fifths], abs=1e-9)
    assert any(cell["shuffled"]["cases"] != cell["ranker"]["cases"] for cell in cells)


def test_a_ranker_that_repeats_the_policy_lifts_nothing() -> None:
    lists, own, nll = lists_of(2)
    same = lists._replace(rewards=lists.log_probs)
    for cell in uplift_map(same, own, nll, resamples=FEW, seed=0)["cells"]:
        if cell["ranker"]["cases"]:
            assert cell["ranker"]["hr@10"]["mean"] == cell["ranker"]["ndcg@10"]["mean"] == 0.0
