"""Splits: by hand, against loops, and the check for leaks."""

from __future__ import annotations

import numpy as np
import pytest

from adagrpo.data.splits import Split, check_leakage, for_some_users, leave_one_out, temporal


def test_leave_one_out() -> None:
    split = leave_one_out(np.array([5, 3, 2, 1, 0]))
    assert split.train_lengths.tolist() == [3, 1, 2, 1, 0]
    assert split.validation_positions.tolist() == [3, 1, -1, -1, -1]
    assert split.test_positions.tolist() == [4, 2, -1, -1, -1]
    check_leakage(split)


def test_temporal_by_hand() -> None:
    users = [
        [1, 2, 10, 11, 20, 21],  # all three periods
        [1, 10, 10],  # nothing in the test period
        [1, 20],  # nothing in the validation period
        [10, 12, 25],  # new in the validation period: a test target only
        [20, 30],  # new in the test period: no target
        [],
        [9, 9],  # only training
    ]
    offsets = np.concatenate([[0], np.cumsum([len(user) for user in users])])
    times = np.array([time for user in users for time in user])
    split = temporal(times, offsets, validation_from=10, test_from=20)
    assert split.train_lengths.tolist() == [2, 1, 1, 0, 0, 0, 2]
    assert split.validation_positions.tolist() == [2, 1, -1, -1, -1, -1, -1]
    assert split.test_positions.tolist() == [4, -1, 1, 2, -1, -1, -1]
    check_leakage(split)


def test_temporal_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    users = [np.sort(rng.integers(0, 30, size=rng.integers(0, 8))) for _ in range(200)]
    offsets = np.concatenate([[0], np.cumsum([len(user) for user in users])]).astype(np.int64)
    split = temporal(np.concatenate(users), offsets, validation_from=12, test_from=21.5)
    for row, times in enumerate(users):
        validation = next((n for n, time in enumerate(times) if 12 <= time < 21.5), -1)
        test = next((n for n, time in enumerate(times) if time >= 21.5), -1)
        assert split.train_lengths[row] == sum(time < 12 for time in times)
        assert split.validation_positions[row] == (validation if validation > 0 else -1)
        assert split.test_positions[row] == (test if test > 0 else -1)


def test_temporal_refuses_disorder() -> None:
    with pytest.raises(ValueError, match="must be before"):
        temporal(np.array([1, 2]), np.array([0, 2]), validation_from=5, test_from=5)
    with pytest.raises(ValueError, match="ascend"):
        temporal(np.array([1, 3, 2]), np.array([0, 1, 3]), validation_from=5, test_from=6)
    temporal(np.array([3, 1, 2]), np.array([0, 1, 3]), validation_from=5, test_from=6)  # from one user to the next


@pytest.mark.parametrize(("train", "validation", "test"), [(3, 2, 4), (3, 3, 2), (2, 3, 3), (2, -1, 1)])
def test_leaks_are_found(train: int, validation: int, test: int) -> None:
    split = Split(np.array([1, train]), np.array([1, validation]), np.array([2, test]))
    with pytest.raises(ValueError, match="user 1"):
        check_leakage(split)


def test_some_users_are_evaluated_and_the_others_trained_on_whole() -> None:
    lengths = np.random.default_rng(0).integers(0, 9, 500)
    whole = leave_one_out(lengths)
    split = for_some_users(whole, 100, 3, lengths)
    check_leakage(split)
    chosen = split.test_positions >= 0
    assert chosen.sum() == 100 and (whole.test_positions[chosen] >= 0).all()
    for name in ("train_lengths", "validation_positions", "test_positions"):
        assert np.array_equal(getattr(split, name)[chosen], getattr(whole, name)[chosen])
    assert np.array_equal(split.train_lengths[~chosen], lengths[~chosen])
    assert (split.validation_positions[~chosen] == -1).all()
    other = for_some_users(whole, 100, 4, lengths)
    assert 5 < ((other.test_positions >= 0) & chosen).sum() < 50
    # a cut in time stays one: nobody is trained on beyond it
    bounded = for_some_users(whole, 100, 3)
    assert np.array_equal(bounded.train_lengths, whole.train_lengths)
    everyone = for_some_users(whole, 10_000, 3, lengths)
    assert np.array_equal(everyone.test_positions, whole.test_positions)
