"""Splits: leave-one-out, and two points in time; a target's history is everything before it.

A target is one interaction or a whole basket, from its position to its end. Folds and samples of users are hashes of
(seed, user).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from adagrpo.types import Ints


@dataclass(frozen=True)
class Split:
    """The split points of `U` users."""

    train_lengths: Ints  # (U,) interactions that training may see, from the oldest
    validation_positions: Ints  # (U,) position of the validation target, -1 where there is none
    test_positions: Ints  # (U,) position of the test target, -1 where there is none
    trained_before: float | None = None  # the time at which training ends, where it is the same for all
    ends: tuple[Ints, Ints] | None = None  # (U,) each, one behind the last of the targets of validation and test
    tested_from: float | None = None  # the time from which test targets are, likewise

    @property
    def target_ends(self) -> tuple[Ints, Ints]:
        """(U,) one behind the last target interaction of validation and of test."""
        return self.ends or (self.validation_positions + 1, self.test_positions + 1)


def leave_one_out(lengths: Ints) -> Split:
    """Hold out each user's last interaction for test, the second last for validation.

    Users with fewer than three interactions are only trained on.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    enough = lengths >= 3
    return Split(
        np.where(enough, lengths - 2, lengths), np.where(enough, lengths - 2, -1), np.where(enough, lengths - 1, -1)
    )


def everything(lengths: Ints) -> Split:
    """All interactions are for training, and nothing is held out."""
    none = np.full_like(lengths, -1)
    return Split(lengths, none, none, np.inf)


# baskets (total,) from 0 within each user, users end to end; offsets (U + 1,)
def last_baskets(baskets: Ints, offsets: Ints) -> Split:
    """Apply `leave_one_out` to baskets."""
    lengths = np.diff(offsets)
    last = np.zeros(len(lengths), np.int64)
    last[lengths > 0] = baskets[offsets[1:][lengths > 0] - 1]
    owners = np.repeat(np.arange(len(lengths)), lengths)
    before = [np.bincount(owners[baskets < last[owners] - back], minlength=len(lengths)) for back in (0, 1)]
    enough = last >= 2
    test, validation = (np.where(enough, found, -1).astype(np.int64) for found in before)
    ends = (np.where(enough, test, 0), np.where(enough, lengths, 0))
    return Split(np.where(enough, validation, lengths), validation, test, ends=ends)


def with_baskets(split: Split, baskets: Ints, offsets: Ints) -> Split:
    """Extend targets of a temporal split to whole baskets; see `last_baskets`."""
    owners = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))

    def end(positions: Ints) -> Ints:
        of_target = np.full(len(positions), -1, np.int64)
        there = positions >= 0
        of_target[there] = baskets[offsets[:-1][there] + positions[there]]
        counts = np.bincount(owners[baskets == of_target[owners]], minlength=len(positions))
        return np.where(there, positions + counts, 0)

    return replace(split, ends=(end(split.validation_positions), end(split.test_positions)))


# timestamps (total,) users end to end, ascending within each; offsets (U + 1,)
def temporal(timestamps: NDArray[np.number], offsets: Ints, *, validation_from: float, test_from: float) -> Split:
    """Split at two times; ValueError if they are out of order, or a user's timestamps do not ascend.

    Training is before `validation_from`. Targets are a user's first interactions in `[validation_from, test_from)` and
    from `test_from` on; a target needs a history.
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
    return Split(train, validation, test, validation_from, tested_from=test_from)


def for_some_users(split: Split, count: int, seed: int, lengths: Ints | None = None) -> Split:
    """Keep the targets of at most `count` users, by (seed, user); with lengths, others are trained on whole."""
    users = np.flatnonzero((split.validation_positions >= 0) | (split.test_positions >= 0))
    chosen = np.zeros(len(split.train_lengths), dtype=np.bool_)
    chosen[users[keyed_uniforms(seed, users).argsort(kind="stable")[:count]]] = True
    trained = split.train_lengths if lengths is None else np.where(chosen, split.train_lengths, lengths)
    validation, test = (np.where(chosen, kept, -1) for kept in (split.validation_positions, split.test_positions))
    ends = split.ends and (np.where(chosen, split.ends[0], 0), np.where(chosen, split.ends[1], 0))
    return Split(trained, validation, test, split.trained_before, ends, split.tested_from)


def keyed_uniforms(seed: int, *keys: Ints) -> NDArray[np.float64]:
    """Return numbers in [0, 1) by seed and ordered keys, (N,) each, at least 0: SplitMix64 (Steele et al. 2014).

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


def user_folds(users: int, folds: int, seed: int) -> Ints:  # (U,)
    """Return each user's fold, in `0 .. folds - 1`, by (seed, user)."""
    every = np.arange(users)
    # a second key unlike any position in a history or that of another draw of users
    return (keyed_uniforms(seed, every, np.full_like(every, 2**40)) * folds).astype(np.int64)


def check_leakage(split: Split) -> None:
    """Raise a ValueError for a user whose training reaches a target, or whose validation is not before test."""
    leaks = np.zeros(len(split.train_lengths), dtype=bool)
    for targets in (split.validation_positions, split.test_positions):
        leaks |= (targets >= 0) & (targets < split.train_lengths)
    both = (split.validation_positions >= 0) & (split.test_positions >= 0)
    leaks |= both & (split.validation_positions >= split.test_positions)
    if leaks.any():
        raise ValueError(f"user {int(np.flatnonzero(leaks)[0])}: a target lies in what was seen before it")
