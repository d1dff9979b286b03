from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from adagrpo.config import ObjectiveConfig
from adagrpo.groups.cases import case_groups, evidence_of
from adagrpo.groups.score import GroupRewards, ScoredGroups
from adagrpo.policies import CompactPolicy
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.types import Cases, Histories, Ragged, Rollouts
from research.gates import rollout_miss_gate

CASES, ITEMS = 23, 20
OBJECTIVE = ObjectiveConfig()


class LastTimesItem:
    """(last item + 1) · (item + 1): tells apart every history and item of these tests."""

    def score(self, histories: Histories, items: torch.Tensor) -> torch.Tensor:
        last = histories.items[torch.arange(len(histories.lengths)), histories.lengths - 1]
        return ((last + 1).unsqueeze(1) * (items + 1)).float()


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog.from_codes(torch.tensor([[i // 5, i % 5] for i in range(ITEMS)]), (4, 6))


@pytest.fixture(scope="module")
def cases() -> Cases:
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 9, CASES)
    values = generator.integers(0, ITEMS, lengths.sum()).astype(np.int32)
    histories = Ragged(values, np.concatenate([[0], lengths.cumsum()]))
    return Cases(np.arange(CASES, dtype=np.int32), histories, generator.integers(0, ITEMS, CASES).astype(np.int32))


def draw(catalog: Catalog, cases: Cases, seed: int = 0, **options: Any) -> ScoredGroups:
    sizes = {"width": 8, "layers": 1, "heads": 2, "decoder_hidden": 8, "max_history": 6, "dropout": 0.0, "seed": 1}
    policy = CompactPolicy(catalog.codes, catalog.level_sizes, **sizes)
    objective = ObjectiveConfig(num_generations=7, negatives=3, **options)
    return case_groups(policy, catalog, LastTimesItem(), cases, objective, batch_size=10, max_history=6, seed=seed)


@pytest.mark.parametrize("options", [{}, {"constrained": True, "temperature": 2.0}, {"rollout": "beam"}])
def test_every_group_belongs_to_its_case(catalog: Catalog, cases: Cases, options: dict[str, Any]) -> None:
    groups = draw(catalog, cases, **options)
    assert groups.targets.tolist() == cases.targets.tolist()
    assert groups.rollouts.items.shape == (CASES, 7) and groups.rollouts.log_probs.shape == (CASES, 7, 2)
    if options.get("rollout") == "beam":
        assert all(
            len(set(row)) == len(row) for row in ([i for i in r if i >= 0] for r in groups.rollouts.items.tolist())
        )
    if options.get("constrained"):
        assert bool((groups.rollouts.items >= 0).all())
    for row in range(CASES):
        history, target = cases.histories.row(row), int(cases.targets[row])
        factor = int(history[-1]) + 1
        assert groups.target_codes[row].tolist() == [target // 5, target % 5]
        assert groups.histories.items[row, : groups.histories.lengths[row]].tolist() == history[-6:].tolist()
        assert groups.rewards.target[row] == factor * (target + 1)
        for place, item in enumerate(groups.rollouts.items[row].tolist()):
            reward = groups.rewards.rollouts[row, place]
            if item < 0:
                assert bool(reward.isnan())
                continue
            assert reward == factor * (item + 1)
            assert groups.rollouts.codes[row, place].tolist() == [item // 5, item % 5]
        for place, item in enumerate(groups.negatives[row].tolist()):
            if item >= 0:
                assert item != target and item not in history[-6:]
                assert groups.rewards.negatives[row, place] == factor * (item + 1)


def test_shuffled_scores_are_the_rows_own_in_another_order(catalog: Catalog, cases: Cases) -> None:
    groups = draw(catalog, cases)

    def by_item(rewards: Any, row: int) -> dict[int, float]:
        items = [int(cases.targets[row]), *groups.rollouts.items[row].tolist(), *groups.negatives[row].tolist()]
        parts = [rewards.target[row : row + 1], rewards.rollouts[row], rewards.negatives[row]]
        return {item: value for item, value in zip(items, torch.cat(parts).tolist(), strict=True) if item >= 0}

    moved = 0
    for row in range(CASES):
        true, fake = by_item(groups.rewards, row), by_item(groups.shuffled_rewards, row)
        assert sorted(true.values()) == sorted(fake.values())
        moved += true != fake
    assert moved > CASES / 2


@pytest.mark.slow
def test_the_log_probabilities_are_those_of_what_was_drawn(catalog: Catalog, cases: Cases) -> None:
    """A rollout that is the target has the target's, under constraint and temperature too."""
    for options in ({}, {"constrained": True, "temperature": 2.0}, {"rollout": "beam"}):
        groups = draw(catalog, cases, **options)
        hits = (groups.rollouts.items == groups.targets.unsqueeze(1)).nonzero()
        assert len(hits) > 0
        for row, place in hits.tolist():
            torch.testing.assert_close(groups.rollouts.log_probs[row, place], groups.target_log_probs[row])


def test_equal_seeds_draw_equal_groups(catalog: Catalog, cases: Cases) -> None:
    first, again, other = (draw(catalog, cases, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.rollouts.items, again.rollouts.items) and torch.equal(first.negatives, again.negatives)
    assert not torch.equal(first.rollouts.items, other.rollouts.items)


def groups_of(items: Any, rewards: Any, targets: Any) -> ScoredGroups:
    """Groups of given (N, G) items, all with the same codes and log-probability 0."""
    own = torch.tensor(items)
    values = torch.tensor(rewards).float().masked_fill(own < 0, torch.nan)
    cases = len(own)
    read = GroupRewards(torch.full((cases,), 2.0), values, torch.empty((cases, 0)), 0)
    rollouts = Rollouts(torch.zeros((*own.shape, 2), dtype=torch.int64), own, torch.zeros((*own.shape, 2)))
    return ScoredGroups(
        Histories(torch.zeros(cases, 1, dtype=torch.int64), torch.ones(cases, dtype=torch.int64)),
        torch.tensor(targets),
        rollouts,
        rollouts,
        torch.zeros(cases, 2, dtype=torch.int64),
        torch.full((cases, 2), -0.75),
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
    assert rollout_miss_gate(*evidence[3:6], miss_min=0.5, q_min=0.75).admitted.tolist() == [True, False]
    assert rollout_miss_gate(*evidence[3:6], miss_min=0.8, q_min=0.75).easy.tolist() == [True, False]


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
