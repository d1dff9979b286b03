"""Post-training with a reward that knows users, and with one that is checked against a truth."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from adagrpo.data.splits import user_folds
from adagrpo.rewards import CrossFitted

USERS = 30


def cross_fitted(world) -> CrossFitted:
    """Two tables that do not agree."""
    first, second = (type(world.reward)(table) for table in (world.reward.table, -3 * world.reward.table + 1))
    return CrossFitted([first, second], user_folds(USERS, 2, seed=5))


def test_a_sample_is_scored_by_the_fold_of_its_user(world):
    reward = cross_fitted(world)
    task = world.post_training(world.policy(), reward=reward, rl_positions="all")
    folds, seen = user_folds(USERS, 2, seed=5), set()
    for step in range(3):
        gated, _, _ = world.draw(task, step)
        for b, user in enumerate(gated.histories.users.tolist()):
            table = reward.rewards[folds[user]].table[world.history_of(gated, b)[-1]]
            assert world.history_of(gated, b)[-1] in world.rows[user]
            for item, actual in zip(gated.rollouts.items[b].tolist(), gated.rewards[b].tolist(), strict=True):
                assert actual == pytest.approx(float(table[item])) if item >= 0 else np.isnan(actual)
            seen.add(int(folds[user]))
    assert seen == {0, 1}


@pytest.mark.parametrize("size", [1, 3])
def test_the_fold_does_not_depend_on_how_a_step_is_cut(world, size):
    schedule = world.schedule()
    whole = world.post_training(world.policy(), schedule, reward=cross_fitted(world))
    parts = world.post_training(world.policy(), world.split(schedule, size), reward=cross_fitted(world))
    for step in range(3):
        one, _, values = world.draw(whole, step)
        other, micros, cut_values = world.draw(parts, step)
        assert len(micros) == -(-len(one.targets) // size)
        assert torch.equal(one.histories.users, other.histories.users)
        torch.testing.assert_close(one.rewards, other.rewards, equal_nan=True)
        assert torch.equal(one.decision.admitted, other.decision.admitted)
        assert values["shuffled_admission"] == cut_values["shuffled_admission"]
        rows = torch.cat([micro.admitted for micro in micros])
        assert torch.equal(rows, one.decision.admitted.nonzero().squeeze(1))


def test_the_oracle_admits_where_the_order_is_right(world):
    truth = torch.rand(USERS, 24, generator=torch.Generator().manual_seed(8))
    requests = []

    def utility(users, targets, items):
        requests.append((users.tolist(), targets.tolist()))
        return truth[users].gather(1, items.clamp(min=0))

    task = world.post_training(world.policy(), gate="oracle", true_utility=utility, oracle_agreement=0.6)
    outcomes = []
    for step in range(4):
        gated, _, values = world.draw(task, step)
        users, targets = requests[-1]
        assert targets == gated.targets.tolist() and all(
            t in world.rows[u] for u, t in zip(users, targets, strict=True)
        )
        for b, user in enumerate(users):
            items = sorted({item for item in gated.rollouts.items[b].tolist() if item >= 0})
            reward = world.reward.table[world.history_of(gated, b)[-1]]
            right = [(reward[i] > reward[j]) == (truth[user, i] > truth[user, j]) for i, j in combinations(items, 2)]
            expected = not gated.decision.degenerate[b] and np.mean(right) >= 0.6
            assert bool(gated.decision.admitted[b]) == expected
            outcomes.append(expected)
        assert values["rejected_closed"] == 1 - values["admission"] - values["rejected_degenerate"]
    assert 0 < sum(outcomes) < len(outcomes)


def test_nothing_but_the_oracle_may_have_the_truth(world):
    with pytest.raises(ValueError, match="nothing else may have it"):
        world.post_training(world.policy(), gate="adagrpo", true_utility=lambda users, targets, items: items.float())
    with pytest.raises(ValueError, match="a gate that reads it needs it"):
        world.post_training(world.policy(), gate="oracle")
