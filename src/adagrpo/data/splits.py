"""Splits: leave-one-out, and two points in time. A split says where in each user's sequence training ends.

Test is never read by a model: `train_lengths` cuts what is trained on, and the positions name the two targets. The
history of a target is all that the user did before it.

Within training there are two more cuts: users into folds, for cross-fitting, and a share of each user's positions that
is kept apart for reinforcement. Both are hashes of (seed, user) and (seed, user, position) alone, so that no other
user's data, and no order of reading, can move a user or a position from one side to the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """The cuts of each of `U` users."""

    train_lengths: Ints  # (U,) interactions that training may see, from the oldest
    validation_positions: Ints  # (U,) position of the validation target, -1 where there is none
    test_positions: Ints  # (U,) position of the test target, -1 where there is none
    trained_before: float | None = None  # the time at which training ends, where it is the same for all


def leave_one_out(lengths: Ints) -> Split:
    """The last interaction is test, the second last validation, the rest training.

    Users of fewer than three interactions are trained on whole and not evaluated.

    Args:
        lengths: (U,) interactions of each user.

    >>> leave_one_out(np.array([5, 2])).train_lengths
    array([3, 2])
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    enough = lengths >= 3
    return Split(
        np.where(enough, lengths - 2, lengths), np.where(enough, lengths - 2, -1), np.where(enough, lengths - 1, -1)
    )


def temporal(
    timestamps: NDArray[np.number],  # (total,) users end to end, ascending within each
    offsets: Ints,  # (U + 1,)
    *,
    validation_from: float,
    test_from: float,
) -> Split:
    """Cut at two points in time that are the same for all users.

    Training is strictly before `validation_from`. A user's validation target is their first interaction in
    `[validation_from, test_from)`, the test target their first at or after `test_from`; a target needs a history.

    Args:
        timestamps: (total,) of all interactions, users end to end, ascending within each user.

    Raises:
        ValueError: the points are not in order, or a user's timestamps are not ascending.
    """
    if not validation_from < test_from:
        raise ValueError(f"validation_from ({validation_from}) must be before test_from ({test_from})")
    inner = np.ones(max(0, len(timestamps) - 1), dtype=bool)
    starts = offsets[1:-1]
    inner[starts[(starts > 0) & (starts < len(timestamps))] - 1] = False  # from one user to the next
    if np.any(inner & (np.diff(timestamps) < 0)):
        raise ValueError("timestamps must ascend within each user")

    def before(point: float) -> Ints:
        counts = np.concatenate([[0], np.cumsum(timestamps < point)])
        return np.asarray(counts[offsets[1:]] - counts[offsets[:-1]], dtype=np.int64)

    lengths = np.diff(offsets)
    train, until_test = before(validation_from), before(test_from)
    validation = np.where((until_test > train) & (train > 0), train, -1)
    test = np.where((lengths > until_test) & (until_test > 0), until_test, -1)
    return Split(train, validation, test, validation_from)


def for_some_users(split: Split, count: int, seed: int, lengths: Ints | None = None) -> Split:
    """The split with targets for some of the users alone, a function of (seed, user).

    Args:
        count: how many of those with a target keep it; all, if there are no more.
        lengths: (U,) interactions of each user, where the others may then be trained on whole.

    >>> split = for_some_users(leave_one_out(np.array([5, 4, 3])), 2, 0, np.array([5, 4, 3]))
    >>> split.train_lengths, split.test_positions
    (array([3, 2, 3]), array([ 4,  3, -1]))
    """
    users = np.flatnonzero((split.validation_positions >= 0) | (split.test_positions >= 0))
    chosen = np.zeros(len(split.train_lengths), dtype=np.bool_)
    chosen[users[keyed_uniforms(seed, users).argsort(kind="stable")[:count]]] = True
    trained = split.train_lengths if lengths is None else np.where(chosen, split.train_lengths, lengths)
    validation, test = (np.where(chosen, kept, -1) for kept in (split.validation_positions, split.test_positions))
    return Split(trained, validation, test, split.trained_before)


def keyed_uniforms(seed: int, *keys: Ints) -> NDArray[np.float64]:
    """Numbers in [0, 1) that are a function of the seed and of their own keys: SplitMix64 (Steele et al. 2014).

    Keys are (N,) each, at least 0, such as user and position; their order matters.

    Args:
        seed: at least 0; unrelated numbers for another seed.

    >>> numbers = keyed_uniforms(0, np.array([3, 4]), np.array([1, 1]))
    >>> bool(numbers[1] == keyed_uniforms(0, np.array([4]), np.array([1]))[0])
    True
    """
    state = np.full(keys[0].shape, seed, dtype=np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2 ** 64 is what is meant
        for key in [np.zeros_like(keys[0]), *keys]:
            state = (state ^ key.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return np.asarray((state >> np.uint64(11)) * 2.0**-53)


_OF_FOLDS = 2**40  # a key that is no place of a history and not that of another draw of users


def user_folds(users: int, folds: int, seed: int) -> Ints:  # (U,)
    """The fold of each user, in `0 .. folds - 1`: a function of (seed, user), and none of who is evaluated.

    Raises:
        ValueError: `folds` is below 1.
    """
    if folds < 1:
        raise ValueError(f"folds must be at least 1, got {folds}")
    every = np.arange(users)
    return (keyed_uniforms(seed, every, np.full_like(every, _OF_FOLDS)) * folds).astype(np.int64)


def check_leakage(split: Split) -> None:
    """Raise a ValueError that names the first user whose training reaches a target, or validation not before test.

    Raises:
        ValueError: naming the first user.
    """
    leaks = np.zeros(len(split.train_lengths), dtype=bool)
    for targets in (split.validation_positions, split.test_positions):
        leaks |= (targets >= 0) & (targets < split.train_lengths)
    both = (split.validation_positions >= 0) & (split.test_positions >= 0)
    leaks |= both & (split.validation_positions >= split.test_positions)
    if leaks.any():
        raise ValueError(f"user {int(np.flatnonzero(leaks)[0])}: a target lies in what was seen before it")
