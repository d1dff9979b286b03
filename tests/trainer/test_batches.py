"""Batches: every position once an epoch, the order a function of the seed and the step."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adagrpo.errors import UserError
from adagrpo.trainer import fit
from adagrpo.trainer.batches import BatchSchedule, keyed_generator, step_key, truncate
from adagrpo.types import Histories, Ragged


def samples(batch) -> list[tuple[int, tuple[int, ...], int]]:
    """(user, items seen, target) of every sample."""
    result = []
    for row, position, target in zip(
        batch.rows.tolist(), batch.positions.tolist(), batch.targets.tolist(), strict=True
    ):
        result.append((int(batch.users[row]), tuple(batch.histories.items[row, : position + 1].tolist()), target))
    return result


@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (4, 2), (5, 3), (2, 4), (100, 1), (100, 3)])
def test_an_epoch_holds_every_position_once_with_the_next_item_as_target(world, batch_size, accumulation):
    expected = []
    for user, row in enumerate(world.rows):
        kept = row[-6:]  # max_history 5 and the last target
        expected += [(user, tuple(kept[:t]), kept[t]) for t in range(1, len(kept))]
    schedule = world.schedule(batch_size, accumulation)
    for epoch in range(3):
        actual = []
        for offset in range(schedule.steps_per_epoch):
            batches = schedule.batches(epoch * schedule.steps_per_epoch + offset)
            assert 1 <= len(batches) <= accumulation
            assert all(len(batch.users) <= batch_size for batch in batches)
            actual += [sample for batch in batches for sample in samples(batch)]
        assert Counter(actual) == Counter(expected)


def test_lengths_and_padding(world):
    for batch in world.schedule().batches(0):
        items, lengths, users, older, *_ = batch.histories
        assert older is None and users.tolist() == batch.users.tolist()
        assert items.shape[1] == int(lengths.max()) <= 5
        assert lengths.tolist() == [min(len(world.rows[user]) - 1, 5) for user in batch.users]
        assert not items[torch.arange(items.shape[1]) >= lengths.unsqueeze(1)].any()
        assert torch.equal(batch.rows, torch.arange(len(lengths)).repeat_interleave(lengths))


def test_the_order_is_a_function_of_seed_and_step(world):
    def users(schedule: BatchSchedule, step: int) -> list[list[int]]:
        return [batch.users.tolist() for batch in schedule.batches(step)]

    first, second = world.schedule(8, 2), world.schedule(8, 2)
    forward = [users(first, step) for step in range(8)]
    assert [users(second, step) for step in reversed(range(8))] == forward[::-1]
    other = BatchSchedule(world.training, 5, 8, 2, seed=6)
    assert [users(other, step) for step in range(8)] != forward
    per_epoch = first.steps_per_epoch
    assert forward[:per_epoch] != forward[per_epoch : 2 * per_epoch]


@pytest.mark.parametrize("cut", [(4, 2), (2, 4), (1, 8)])
def test_the_histories_of_a_step_do_not_depend_on_how_it_is_cut(world, cut):
    whole, other = world.schedule(8, 1), world.schedule(*cut)
    assert whole.steps_per_epoch == other.steps_per_epoch
    for step in range(9):
        (batch,), parts = whole.batches(step), other.batches(step)
        assert np.concatenate([chunk.users for chunk in parts]).tolist() == batch.users.tolist()


@pytest.mark.parametrize(("accumulation", "processes", "expected"), [(1, 2, 2), (2, 2, 2), (3, 2, 4), (4, 3, 6)])
def test_processes_share_a_step(world, accumulation, processes, expected):
    schedule = BatchSchedule(world.training, 5, 12 // accumulation, accumulation, seed=5, processes=processes)
    assert len(schedule.batches(0)) == expected
    (whole,) = world.schedule(12).batches(0)
    assert np.concatenate([batch.users for batch in schedule.batches(0)]).tolist() == whole.users.tolist()


def test_a_schedule_without_any_pair_is_refused(world):
    with pytest.raises(UserError, match="no user has two training interactions"):
        world.schedule(training=world.ragged([[1], [2]]))


@settings(max_examples=30, deadline=None)
@given(data=st.data(), rows=st.integers(1, 5))
def test_truncate_is_the_loop(data, rows):
    lengths = torch.tensor(data.draw(st.lists(st.integers(1, 6), min_size=rows, max_size=rows)))
    items = torch.randint(1, 50, (rows, 6)).masked_fill(torch.arange(6) >= lengths.unsqueeze(1), 0)
    count = data.draw(st.integers(1, 8))
    chosen = torch.tensor(data.draw(st.lists(st.integers(0, rows - 1), min_size=count, max_size=count)))
    positions = torch.tensor([data.draw(st.integers(0, int(lengths[row]) - 1)) for row in chosen])
    result = truncate(Histories(items, lengths), chosen, positions)
    assert result.lengths.tolist() == [position + 1 for position in positions.tolist()]
    assert result.items.shape == (count, int(positions.max()) + 1)
    for n in range(count):
        expected = items[chosen[n], : positions[n] + 1].tolist()
        assert result.items[n].tolist() == expected + [0] * (result.items.shape[1] - len(expected))


def test_truncate_of_nothing():
    empty = torch.empty(0, dtype=torch.int64)
    result = truncate(Histories(torch.ones(2, 3, dtype=torch.int64), torch.tensor([3, 3])), empty, empty)
    assert result.items.shape == (0, 1) and result.lengths.shape == (0,)


def test_keys_are_distinct_and_reproducible():
    keys = {step_key(seed, step, part) for seed in range(3) for step in range(20) for part in range(1, 6)}
    assert len(keys) == 3 * 20 * 5 and all(0 <= key < 2**63 for key in keys)
    assert torch.equal(
        torch.rand(4, generator=keyed_generator(1, 2, 3)), torch.rand(4, generator=keyed_generator(1, 2, 3))
    )
    streams = np.stack([torch.rand(2000, generator=keyed_generator(0, step)).numpy() for step in range(4)])
    assert np.abs(np.corrcoef(streams) - np.eye(4)).max() < 0.1


def test_to_a_device_keeps_everything(world):
    batch = world.schedule().batches(0)[0]
    moved = batch.to(torch.device("cpu"))
    assert moved.users is batch.users and samples(moved) == samples(batch)


@pytest.mark.parametrize("kind", ["supervised", "post"])
def test_how_a_step_is_cut_does_not_change_the_fit(world, tmp_path, kind):
    """1 x 8 histories and 8 x 1: the same weights after 4 steps, in sft and in post-training with its gate.

    The bias of the keys is left out: no output depends on it, and Adam makes steps of the rounding of its gradient.
    """
    actual = []
    for batch_size, accumulation in ((8, 1), (1, 8)):
        policy = world.policy()
        schedule = world.schedule(batch_size, accumulation)
        make = world.supervised if kind == "supervised" else world.post_training
        settings = world.settings(learning_rate=1e-3, validations=0)
        fit(policy, make(policy, schedule, steps=4), settings, tmp_path / str(accumulation), seed=5)
        weights = policy.state_dict()
        actual.append({name: part for name, part in weights.items() if not name.endswith("query_key_value.bias")})
    begun = world.policy().state_dict()
    assert any(float((tensor - begun[name]).abs().max()) > 1e-3 for name, tensor in actual[0].items())
    assert all(float((tensor - actual[1][name]).abs().max()) < 1e-6 for name, tensor in actual[0].items())


def test_items_of_a_basket_are_targets_after_the_basket_before_and_have_no_order():
    values = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9], np.int32)
    baskets = np.array([0, 0, 1, 2, 2, 2, 0, 0, 0], np.int32)
    training = Ragged(values, np.array([0, 6, 9]), baskets=baskets)
    schedule = BatchSchedule(training, max_history=3, batch_size=4, accumulation=1, seed=0)
    assert schedule.lengths.tolist() == [6, 0]  # of one basket nothing is a target
    orders = set()
    for epoch in range(20):
        (batch,) = schedule.batches(epoch)
        seen = batch.histories.items[0].tolist()
        assert sorted(seen[:2]) == [1, 2] and seen[2:] == [3]
        found = [(sorted(items), target) for _, items, target in samples(batch)]
        assert found == [([1, 2], 3), *(([1, 2, 3], target) for target in (4, 5, 6))]
        orders.add(tuple(seen))
    assert len(orders) == 2


def test_a_last_basket_longer_than_the_history_still_has_its_targets():
    training = Ragged(np.arange(9, dtype=np.int32), np.array([0, 9]), baskets=np.array([0, 0, 1, 2, 2, 2, 2, 2, 2]))
    schedule = BatchSchedule(training, max_history=2, batch_size=4, accumulation=1, seed=0, rl_split=0.5)
    (batch,) = schedule.batches(0)
    # the window holds item 1, of which the first basket lost item 0, and item 2
    assert [(items, target) for _, items, target in samples(batch)] == [((1,), 2), *(((1, 2), n) for n in range(3, 9))]
    assert batch.first.tolist() == [1]
