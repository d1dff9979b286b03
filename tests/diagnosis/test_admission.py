from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from adagrpo.config import ObjectiveConfig
from adagrpo.diagnosis import evidence_of
from adagrpo.diagnosis.admission import pull
from adagrpo.groups.score import GroupRewards, ScoredGroups
from adagrpo.objective import rollout_miss_gate
from adagrpo.types import Histories, Rollouts

OBJECTIVE = ObjectiveConfig()
LEVELS = 4


def groups_of(items: Any, rewards: Any, targets: Any, *, log_probs: Any = None, shared: Any = None) -> ScoredGroups:
    """Groups of given (N, G) items; `shared` is the share of four leading codes that are the logged item's, 0s."""
    own = torch.tensor(items)
    values = torch.tensor(rewards).float().masked_fill(own < 0, torch.nan)
    scores = torch.zeros(own.shape) if log_probs is None else torch.tensor(log_probs).float()
    common = torch.zeros(own.shape) if shared is None else torch.tensor(shared).float()
    codes = (torch.arange(LEVELS) >= LEVELS * common.unsqueeze(2)).long()
    cases = len(own)
    read = GroupRewards(torch.full((cases,), 2.0), values, torch.empty((cases, 0)), 0)
    rollouts = Rollouts(codes, own, (scores / LEVELS).unsqueeze(2).expand(-1, -1, LEVELS))
    return ScoredGroups(
        Histories(torch.zeros(cases, 1, dtype=torch.int64), torch.ones(cases, dtype=torch.int64)),
        torch.tensor(targets),
        rollouts,
        rollouts,
        torch.zeros(cases, LEVELS, dtype=torch.int64),
        torch.full((cases, LEVELS), -1.5 / LEVELS),
        torch.empty((cases, 0), dtype=torch.int64),
        read,
        read,
        0.0,
    )


def test_evidence_by_hand() -> None:
    """The target (reward 2) beats 1 and ties with 2 of the two distinct others; the last group is flat."""
    groups = groups_of([[4, 4, 5, 9], [-1, 6, 6, 6]], [[1.0, 1.0, 2.0, 0.0], [0, 1, 1, 1]], [9, 9])
    evidence = evidence_of(groups, OBJECTIVE)
    assert evidence.q.tolist() == [0.75, 1.0] and evidence.miss.tolist() == [0.75, 1.0]
    assert evidence.degenerate.tolist() == [False, True]
    assert rollout_miss_gate(*evidence[3:], miss_min=0.5, q_min=0.75).admitted.tolist() == [True, False]
    assert rollout_miss_gate(*evidence[3:], miss_min=0.8, q_min=0.75).easy.tolist() == [True, False]


def test_a_group_is_flat_by_the_spread_of_all_rewards() -> None:
    """Rewards 0, 1 | 0, 10: their standard deviation is 4.86, so that a floor of .3 makes the first one flat."""
    groups = groups_of([[4, 5], [4, 5]], [[0.0, 1.0], [0.0, 10.0]], [9, 9])
    for floor, flat in ((0.2, False), (0.3, True)):
        evidence = evidence_of(groups, ObjectiveConfig(reward_floor=floor))
        assert evidence.degenerate.tolist() == [flat, False]


def test_shuffled_rewards_are_read_in_their_place() -> None:
    groups = groups_of([[4, 5]], [[1.0, 3.0]], [9])
    fake = groups.rewards._replace(target=torch.tensor([5.0]))
    assert evidence_of(groups, OBJECTIVE).q.tolist() == [0.5]
    assert evidence_of(groups._replace(shuffled_rewards=fake), OBJECTIVE, shuffled=True).q.tolist() == [1.0]


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
    values = pull(groups)
    assert abs(values.mean()) < 1e-8 and np.abs(values).max() > 0.01


def test_a_reward_that_repeats_the_policy_does_not_pull() -> None:
    own = [[-1.0, -2.0, -3.0, -7.0]]
    groups = groups_of([[1, 2, 3, 4]], [[8.0, 6.0, 4.0, -4.0]], [9], log_probs=own, shared=[[1.0, 0.5, 0.0, 0.0]])
    assert abs(pull(groups)[0]) < 1e-6


def test_the_target_its_copies_and_what_names_no_item_do_not_pull() -> None:
    few = groups_of([[9, 9, -1, 4], [-1, -1, -1, -1], [4, 5, 4, 5]], [[9.0, 9, 9, 1], [0] * 4, [3.0] * 4], [9, 9, 9])
    assert pull(few).tolist() == [0.0, 0.0, 0.0]
    twice = groups_of([[1, 1, 1, 2, 3, 4]], [[5.0, 5, 5, 0, 2, 1]], [9], shared=[[1.0, 1, 1, 0, 0.5, 0]])
    once = groups_of([[1, 2, 3, 4]], [[5.0, 0, 2, 1]], [9], shared=[[1.0, 0, 0.5, 0]])
    assert pull(twice)[0] == pytest.approx(pull(once)[0], rel=1e-12)


def test_codes_are_shared_from_the_first_on() -> None:
    """0 0 1 0 beside 0 0 0 0 has two of four codes in common, 1 0 0 0 has none."""
    shared = [[0.5, 0.0, 0.25]]
    groups = groups_of([[1, 2, 3]], [[5.0, 0.0, 1.0]], [9], shared=shared)
    again = groups.rollouts.codes.clone()
    again[0, 0, 3], again[0, 1, 1:] = 0, 0
    rollouts = groups.rollouts._replace(codes=again)
    assert pull(groups)[0] != 0.0
    assert pull(groups._replace(rollouts=rollouts)).tolist() == pull(groups).tolist()
