from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from adagrpo.analysis import Groups, judge
from adagrpo.analysis.gates import cohens_kappa, pairwise_accuracy, pull
from adagrpo.config import ObjectiveConfig
from adagrpo.rewards import GroupRewards

OBJECTIVE = ObjectiveConfig()


def groups_of(items: Any, rewards: Any, targets: Any, *, log_probs: Any = None, shared: Any = None) -> Groups:
    own = torch.tensor(items)
    values = torch.tensor(rewards).float().masked_fill(own < 0, torch.nan)
    scores = torch.zeros(own.shape) if log_probs is None else torch.tensor(log_probs).float()
    common = torch.zeros(own.shape) if shared is None else torch.tensor(shared).float()
    cases = len(own)
    none = torch.empty((cases, 0))
    read = GroupRewards(torch.full((cases,), 2.0), values, none, 0)
    return Groups(
        torch.tensor(targets), own, common, scores.unsqueeze(2), torch.full((cases, 1), -1.5), none.long(), read, read
    )


def test_kappa_by_hand() -> None:
    a = np.array([True, True, True, False, False, False, False, False, False, False])
    b = np.array([True, True, False, True, False, False, False, False, False, False])
    # equal in 8 of 10; by chance .3 · .3 + .7 · .7 = .58
    assert cohens_kappa(a, b) == pytest.approx(0.22 / 0.42)
    assert cohens_kappa(a, ~a) == pytest.approx(-0.42 / 0.58)
    assert cohens_kappa(np.ones(3, dtype=bool), np.ones(3, dtype=bool)) is None


def test_judging_by_hand() -> None:
    """The target (reward 2) beats 1 and ties with 2 of the two distinct others; the last group is flat."""
    groups = groups_of([[4, 4, 5, 9], [-1, 6, 6, 6]], [[1.0, 1.0, 2.0, 0.0], [0, 1, 1, 1]], [9, 9])
    judged = judge(groups, OBJECTIVE)
    assert judged.q.tolist() == [0.75, 1.0] and judged.difficulty.tolist() == [0.75, 1.0]
    assert judged.degenerate.tolist() == [False, True]
    assert judged.decide(tau=0.5, q_min=0.75).admitted.tolist() == [True, False]
    assert judged.decide(tau=0.8, q_min=0.75).easy.tolist() == [True, False]


def test_shuffled_rewards_are_read_in_their_place() -> None:
    groups = groups_of([[4, 5]], [[1.0, 3.0]], [9])
    fake = groups.rewards._replace(target=torch.tensor([5.0]))
    assert judge(groups, OBJECTIVE).q.tolist() == [0.5]
    assert judge(groups._replace(shuffled=fake), OBJECTIVE, shuffled=True).q.tolist() == [1.0]


def slow_pull(items: list[int], rewards: list[float], shared: list[float], own: list[float], target: int) -> float:
    kept: dict[int, tuple[float, float, float]] = {}
    for item, *values in zip(items, rewards, shared, own, strict=True):
        if item >= 0 and item != target:
            kept.setdefault(item, tuple(values))
    r, s, x = (np.array(column) for column in zip(*kept.values(), strict=True))
    left = r - np.polyval(np.polyfit(x, r, 1), x)
    return float((left * s).mean() / r.std())


def test_pull_is_that_of_a_plain_regression() -> None:
    generator = np.random.default_rng(0)
    items = generator.integers(-1, 12, (30, 9))
    rewards = generator.normal(size=12)[np.maximum(items, 0)]
    own = generator.normal(size=12)[np.maximum(items, 0)]
    shared = generator.integers(0, 4, 12)[np.maximum(items, 0)] / 4
    targets = generator.integers(0, 12, 30)
    groups = groups_of(
        items.tolist(), rewards.tolist(), targets.tolist(), log_probs=own.tolist(), shared=shared.tolist()
    )
    expected = [slow_pull(*row) for row in zip(items, rewards, shared, own, targets, strict=True)]
    np.testing.assert_allclose(pull(groups), expected, rtol=1e-5, atol=1e-6)  # rewards are float32


def test_pull_averages_out_over_all_ways_to_give_the_scores_to_the_items() -> None:
    """Exactly, and although the policy's scores and the shared codes go together."""
    orders = list(itertools.permutations([0.0, 0.3, 1.0, 5.0]))
    items, shared, own = [[1, 2, 3, 4]] * 24, [[1.0, 0.5, 0.0, 0.25]] * 24, [[-1.0, -2.0, -5.0, -4.0]] * 24
    groups = groups_of(items, orders, [9] * 24, log_probs=own, shared=shared)
    for beyond in (True, False):
        values = pull(groups, beyond_policy=beyond)
        assert abs(values.mean()) < 1e-8 and np.abs(values).max() > 0.01


def test_a_reward_that_repeats_the_policy_pulls_but_not_beyond_it() -> None:
    own = [[-1.0, -2.0, -3.0, -7.0]]
    groups = groups_of([[1, 2, 3, 4]], [[8.0, 6.0, 4.0, -4.0]], [9], log_probs=own, shared=[[1.0, 0.5, 0.0, 0.0]])
    assert pull(groups, beyond_policy=False)[0] > 0.1 and abs(pull(groups)[0]) < 1e-6


def test_the_target_its_copies_and_what_names_no_item_do_not_pull() -> None:
    few = groups_of([[9, 9, -1, 4], [-1, -1, -1, -1], [4, 5, 4, 5]], [[9.0, 9, 9, 1], [0] * 4, [3.0] * 4], [9, 9, 9])
    assert pull(few).tolist() == [0.0, 0.0, 0.0] == pull(few, beyond_policy=False).tolist()
    twice = groups_of([[1, 1, 1, 2, 3, 4]], [[5.0, 5, 5, 0, 2, 1]], [9], shared=[[1.0, 1, 1, 0, 0.5, 0]])
    once = groups_of([[1, 2, 3, 4]], [[5.0, 0, 2, 1]], [9], shared=[[1.0, 0, 0.5, 0]])
    assert pull(twice)[0] == pytest.approx(pull(once)[0], rel=1e-12)


def slow_accuracy(items: list[int], scores: list[float], utility: list[float], target: int) -> float:
    kept: dict[int, tuple[float, float]] = {}
    for item, score, true in zip(items, scores, utility, strict=True):
        if item >= 0 and item != target:
            kept.setdefault(item, (score, true))
    points = [
        (np.sign((a[0] - b[0]) * (a[1] - b[1])) + 1) / 2
        for a, b in itertools.combinations(kept.values(), 2)
        if a[1] != b[1]
    ]
    return float(np.mean(points)) if points else float("nan")


def test_pairwise_accuracy_is_that_of_plain_counting() -> None:
    generator = np.random.default_rng(1)
    items = generator.integers(-1, 8, (40, 6))
    table, truth = generator.integers(0, 4, 8).astype(float), generator.integers(0, 3, 8).astype(float)
    scores, utility = table[np.maximum(items, 0)], truth[np.maximum(items, 0)]
    targets = generator.integers(0, 8, 40)
    groups = groups_of(items.tolist(), scores.tolist(), targets.tolist())
    expected = [slow_accuracy(*row) for row in zip(items, scores, utility, targets, strict=True)]
    np.testing.assert_allclose(pairwise_accuracy(groups, groups.rewards.rollouts, utility), expected, rtol=1e-12)
