"""Negatives, candidates and reading rewards against loops over rows."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adagrpo.errors import NotFinite
from adagrpo.groups.score import (
    Candidates,
    GroupRewards,
    constant_share,
    distinct_candidates,
    distinct_rollouts,
    in_batch_negatives,
    other_rollouts,
    read_rewards,
    shuffled,
)
from adagrpo.rewards import BadReward, Reward, WeightedReward, ask_reward
from adagrpo.types import Histories


class PairReward:
    """`100 * last item of the history + item`; NaN at -1, so that reading it anywhere shows."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        self.asked = items.tolist()
        last = histories.items.gather(1, histories.lengths.unsqueeze(1) - 1)
        return torch.where(items >= 0, 100.0 * last + items, torch.nan)


def random_batch(samples: int, seed: int, catalogue: int = 12) -> tuple[Tensor, Histories, Tensor]:
    """Targets (B,), histories, rollout items (B, 6)."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, catalogue, (samples,), generator=generator)
    lengths = torch.randint(1, 6, (samples,), generator=generator)
    items = torch.randint(0, catalogue, (samples, 5), generator=generator)
    items = items.masked_fill(torch.arange(5) >= lengths.unsqueeze(1), 0)
    return targets, Histories(items, lengths), torch.randint(-1, catalogue, (samples, 6), generator=generator)


def rewards_of(reward: Reward, histories: Histories, candidates: Candidates) -> GroupRewards:
    return read_rewards(candidates, ask_reward(reward, histories, candidates.items))


# ---------------------------------------------------------------- in-batch negatives


@settings(max_examples=40, deadline=None)
@given(samples=st.integers(1, 12), count=st.integers(0, 6), seed=st.integers(0, 10_000))
def test_negatives_follow_the_loop(samples, count, seed):
    targets, histories, _ = random_batch(samples, seed)
    uniforms = torch.rand(samples, samples, generator=torch.Generator().manual_seed(seed))
    negatives = in_batch_negatives(targets, histories, uniforms, count)
    assert negatives.shape == (samples, count) and negatives.dtype == torch.int64
    distinct = sorted(set(targets.tolist()))
    for row in range(samples):
        seen = set(histories.items[row, : histories.lengths[row]].tolist()) | {int(targets[row])}
        eligible = [(float(uniforms[row, j]), item) for j, item in enumerate(distinct) if item not in seen]
        chosen = [item for _, item in sorted(eligible)[:count]]
        assert negatives[row].tolist() == chosen + [-1] * (count - len(chosen))


def test_padding_of_a_history_excludes_nothing():
    histories = Histories(torch.tensor([[5, 0, 0], [6, 0, 0]]), torch.tensor([1, 1]))
    negatives = in_batch_negatives(torch.tensor([3, 0]), histories, torch.zeros(2, 2), 1)
    assert negatives.tolist() == [[0], [3]]  # item 0 is drawn for row 0 although its padding holds 0


def test_negatives_are_drawn_uniformly():
    # targets 0..4; row 0 has target 0 and history {1}: it draws one of the pairs {2,3}, {2,4}, {3,4}
    histories = Histories(torch.tensor([[1], [9], [9], [9], [9]]), torch.ones(5, dtype=torch.int64))
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(5)
    for _ in range(1500):
        drawn = in_batch_negatives(torch.arange(5), histories, torch.rand(5, 5, generator=generator), 2)[0]
        counts[drawn] += 1
    # each of the three is drawn with probability 2/3; five standard errors of 1,500 draws are 0.061
    torch.testing.assert_close(counts / 1500, torch.tensor([0, 0, 2 / 3, 2 / 3, 2 / 3]), rtol=0, atol=0.061)


def test_a_batch_of_equal_targets_has_no_negatives():
    histories = Histories(torch.tensor([[1], [1]]), torch.tensor([1, 1]))
    assert in_batch_negatives(torch.tensor([4, 4]), histories, torch.rand(2, 2), 3).tolist() == [[-1] * 3] * 2


# ---------------------------------------------------------------- negatives of other samples' rollouts


@settings(max_examples=40, deadline=None)
@given(samples=st.integers(1, 9), count=st.integers(0, 6), seed=st.integers(0, 10_000))
def test_items_of_other_rollouts_follow_the_loop(samples, count, seed):
    targets, histories, rollouts = random_batch(samples, seed)
    pool = distinct_rollouts(rollouts)
    uniforms = torch.rand(pool.counts.shape, generator=torch.Generator().manual_seed(seed))
    negatives = other_rollouts(targets, histories, pool, uniforms, count)
    assert negatives.shape == (samples, count) and negatives.dtype == torch.int64
    assert pool.items.tolist() == sorted(set(rollouts[rollouts >= 0].tolist()))
    for row in range(samples):
        barred = set(histories.items[row, : histories.lengths[row]].tolist()) | {int(targets[row])}
        drawn = [item for other in range(samples) if other != row for item in rollouts[other].tolist() if item >= 0]
        waits = [
            (-math.log1p(-float(uniforms[row, column])) / drawn.count(item), item)
            for column, item in enumerate(pool.items.tolist())
            if item in drawn and item not in barred
        ]
        chosen = [item for _, item in sorted(waits)[:count]]
        assert negatives[row].tolist() == chosen + [-1] * (count - len(chosen))


def test_items_of_other_rollouts_are_drawn_as_often_as_they_occur_there():
    # the others of row 0 drew item 5 three times, 6 once, and 2 and 3 that row 0 logged and has seen
    rollouts = torch.tensor([[7, 7, 7, 6], [5, 5, 2, -1], [5, 3, 6, 2]])
    histories = Histories(torch.tensor([[3], [9], [9]]), torch.ones(3, dtype=torch.int64))
    pool, generator = distinct_rollouts(rollouts), torch.Generator().manual_seed(0)
    first = [
        int(other_rollouts(torch.tensor([2, 8, 8]), histories, pool, uniforms, 1)[0])
        for uniforms in torch.rand(2000, *pool.counts.shape, generator=generator)
    ]
    assert set(first) == {5, 6}  # 7 is its own alone
    assert first.count(5) / 2000 == pytest.approx(3 / 4, abs=0.049)  # five standard errors


def test_a_sample_alone_has_no_items_of_others():
    histories = Histories(torch.tensor([[1]]), torch.tensor([1]))
    pool = distinct_rollouts(torch.tensor([[4, 5]]))
    assert other_rollouts(torch.tensor([2]), histories, pool, torch.rand(1, 2), 2).tolist() == [[-1, -1]]
    nothing = distinct_rollouts(torch.tensor([[-1, -1]]))
    assert other_rollouts(torch.tensor([2]), histories, nothing, torch.rand(1, 0), 2).tolist() == [[-1, -1]]


# ---------------------------------------------------------------- candidates and rewards


def candidates_of(samples: int, seed: int) -> tuple[Tensor, Histories, Tensor, Tensor, Candidates]:
    targets, histories, rollouts = random_batch(samples, seed)
    uniforms = torch.rand(samples, samples, generator=torch.Generator().manual_seed(seed))
    negatives = in_batch_negatives(targets, histories, uniforms, 3)
    return targets, histories, rollouts, negatives, distinct_candidates(targets, rollouts, negatives)


@settings(max_examples=40, deadline=None)
@given(samples=st.integers(1, 8), seed=st.integers(0, 10_000))
def test_candidates_and_rewards_follow_the_loop(samples, seed):
    targets, histories, rollouts, negatives, candidates = candidates_of(samples, seed)
    reward = PairReward()
    rewards = rewards_of(reward, histories, candidates)
    rows = []
    for row in range(samples):
        mentioned = [int(targets[row]), *rollouts[row].tolist(), *negatives[row].tolist()]
        rows.append(sorted({item for item in mentioned if item >= 0}))
    width = max(map(len, rows))
    assert reward.asked == [row + [-1] * (width - len(row)) for row in rows]
    assert rewards.scored == sum(map(len, rows))
    for row in range(samples):
        last = int(histories.items[row, histories.lengths[row] - 1])
        assert float(rewards.target[row]) == 100 * last + int(targets[row])
        for given_items, read in ((rollouts, rewards.rollouts), (negatives, rewards.negatives)):
            assert read.shape == given_items.shape
            for item, value in zip(given_items[row].tolist(), read[row].tolist(), strict=True):
                assert math.isnan(value) if item < 0 else value == 100 * last + item


def test_candidates_by_hand():
    candidates = distinct_candidates(
        torch.tensor([4, 2]), torch.tensor([[9, -1, 4, 9], [-1, -1, -1, -1]]), torch.tensor([[1, -1], [2, -1]])
    )
    assert candidates.items.tolist() == [[1, 4, 9], [2, -1, -1]]
    assert candidates.target.tolist() == [1, 0]
    assert candidates.rollouts.tolist() == [[2, -1, 1, 2], [-1, -1, -1, -1]]
    assert candidates.negatives.tolist() == [[0, -1], [0, -1]]


def test_an_invalid_rollout_never_gets_the_score_of_an_item():
    histories = Histories(torch.tensor([[3]]), torch.tensor([1]))
    candidates = distinct_candidates(torch.tensor([4]), torch.full((1, 5), -1), torch.empty(1, 0, dtype=torch.int64))
    rewards = rewards_of(PairReward(), histories, candidates)
    assert rewards.rollouts.isnan().all()
    assert rewards.target.tolist() == [304.0]
    assert rewards.negatives.shape == (1, 0)
    assert rewards.scored == 1


def test_equal_histories_with_different_targets_keep_their_own_scores():
    histories = Histories(torch.tensor([[3], [3]]), torch.tensor([1, 1]))
    candidates = distinct_candidates(torch.tensor([4, 8]), torch.tensor([[8], [4]]), torch.tensor([[-1], [-1]]))
    rewards = rewards_of(PairReward(), histories, candidates)
    assert rewards.target.tolist() == [304.0, 308.0]
    assert rewards.rollouts.tolist() == [[308.0], [304.0]]


# ---------------------------------------------------------------- bad rewards


class FixedReward:
    def __init__(self, scores: Tensor) -> None:
        self.scores = scores

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        return self.scores


HISTORIES = Histories(torch.tensor([[3], [3]]), torch.tensor([1, 1]))
CANDIDATES = distinct_candidates(torch.tensor([4, 8]), torch.tensor([[5], [-1]]), torch.tensor([[6], [-1]]))


def test_scores_of_real_items_must_be_finite():
    scores = torch.tensor([[1.0, torch.nan, torch.inf], [2.0, 0.0, 0.0]])
    with pytest.raises(NotFinite, match="the reward FixedReward gave NaN or infinity for 2 of 4 items") as caught:
        ask_reward(FixedReward(scores), HISTORIES, CANDIDATES.items)
    assert caught.value.what == "reward"


@pytest.mark.parametrize(("bad", "named"), [((1,), "second"), ((0, 1), "first and second"), ((), "WeightedReward")])
def test_the_members_that_are_not_finite_are_named(bad, named):
    scores = torch.tensor([[1.0, 2.0, 3.0], [2.0, 0.0, 0.0]])
    members = [FixedReward(scores.clone() * 1e38), FixedReward(scores.clone())]
    for place, name in enumerate(("first", "second")):
        members[place].name = name
        if place in bad:
            members[place].scores[0, 0] = torch.nan
    ensemble = WeightedReward(members, [1.0 if bad else 10.0, 1.0])  # 1e39 is beyond float32
    with pytest.raises(NotFinite, match=f"the reward {named} gave"):
        ask_reward(ensemble, HISTORIES, CANDIDATES.items)


def test_the_score_at_padding_is_not_read():
    scores = torch.tensor([[1.0, 2.0, 3.0], [4.0, torch.inf, torch.nan]], dtype=torch.float64)
    read = ask_reward(FixedReward(scores), HISTORIES, CANDIDATES.items)
    assert read.dtype == torch.float32
    assert read[0].tolist() == [1, 2, 3] and float(read[1, 0]) == 4
    assert read[1, 1:].isnan().all()
    assert scores[1, 1].isinf()  # the reward's own tensor is left alone


def test_scores_must_have_the_shape_of_the_candidates():
    with pytest.raises(BadReward, match=r"must return \(2, 3\) scores, got \(2,\)"):
        ask_reward(FixedReward(torch.zeros(2)), HISTORIES, CANDIDATES.items)


# ---------------------------------------------------------------- shuffling


@settings(max_examples=40, deadline=None)
@given(samples=st.integers(1, 8), seed=st.integers(0, 10_000))
def test_shuffling_permutes_each_row_and_leaves_padding(samples, seed):
    *_, candidates = candidates_of(samples, seed)
    scores = torch.arange(candidates.items.numel(), dtype=torch.float32).view(candidates.items.shape)
    uniforms = torch.rand(scores.shape, generator=torch.Generator().manual_seed(seed))
    result = shuffled(candidates, scores, uniforms)
    for row in range(samples):
        real = int((candidates.items[row] >= 0).sum())
        order = sorted(range(real), key=lambda slot: float(uniforms[row, slot]))
        assert result[row, :real].tolist() == [float(scores[row, slot]) for slot in order]
        assert torch.equal(result[row, real:], scores[row, real:])


def test_shuffled_rewards_agree_wherever_an_item_is_mentioned():
    # the target and two rollouts are the same item: they read the same shuffled score
    candidates = distinct_candidates(torch.tensor([4]), torch.tensor([[4, 9, 4]]), torch.tensor([[9]]))
    scores = ask_reward(PairReward(), Histories(torch.tensor([[0]]), torch.tensor([1])), candidates.items)
    rewards = read_rewards(candidates, shuffled(candidates, scores, torch.tensor([[0.9, 0.1]])))
    assert rewards.target.tolist() == [9.0]
    assert rewards.rollouts.tolist() == [[9.0, 4.0, 9.0]]
    assert rewards.negatives.tolist() == [[4.0]]


def test_where_nothing_names_an_item_the_reward_is_not_asked():
    """At the ends of histories, a step whose rollouts are all invalid: nothing to score, and nothing to index."""
    reward, histories = PairReward(), Histories(torch.tensor([[3], [1]]), torch.tensor([1, 1]))
    nothing = torch.full((2,), -1)
    candidates = distinct_candidates(nothing, torch.full((2, 4), -1), torch.empty(2, 0, dtype=torch.int64))
    assert candidates.items.shape == (2, 0)
    scores = ask_reward(reward, histories, candidates.items)
    assert reward.asked == [] and scores.shape == (2, 0)
    for values in (scores, shuffled(candidates, scores, torch.empty(2, 0))):
        rewards = read_rewards(candidates, values)
        assert rewards.rollouts.shape == (2, 4) and rewards.rollouts.isnan().all()
        assert rewards.target.isnan().all() and rewards.negatives.shape == (2, 0) and rewards.scored == 0
    assert constant_share(candidates, scores) == 0.0
