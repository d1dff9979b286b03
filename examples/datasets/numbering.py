"""Interactions to numbered sequences, and what they are compared with: counts and hashes of what was published.

Three hashes, each blind to more than the one before:

    numbering   one line a user, in the order of the users: the same sequences under the same numbers
    sequences   the same lines, sorted: the same sequences, users in another order
    contents    the items of each line sorted too: the same interactions, the order of some differs
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import polars as pl

from adagrpo.data.columns import ITEM_ID, POSITION, USER_ID
from adagrpo.errors import UserError

__all__ = ["Event", "counts_of", "hash_lines", "hashes_of", "interaction_table", "k_core", "number_items"]

LONGEST_SEQUENCE = int(np.iinfo(np.int16).max)
T = TypeVar("T", bound=Hashable)


class Event(NamedTuple):
    """One interaction, in the ids of its source."""

    user: str
    item: str
    time: int


def k_core(events: list[Event], least: int) -> list[Event]:
    """Keep events whose user and item both have at least so many, until none goes. The order stays.

    >>> rows = [Event("a", "x", 0), Event("a", "y", 1), Event("b", "x", 2), Event("b", "y", 3), Event("c", "x", 4)]
    >>> [event.user for event in k_core(rows, 2)]
    ['a', 'a', 'b', 'b']
    """
    before = -1
    while len(events) != before:
        before = len(events)
        items = Counter(event.item for event in events)
        events = [event for event in events if items[event.item] >= least]
        users = Counter(event.user for event in events)
        events = [event for event in events if users[event.user] >= least]
    return events


def number_items(sequences: Iterable[Sequence[T]]) -> dict[T, int]:
    """Numbers of items in the order in which they first occur.

    >>> number_items([["x", "y"], ["z", "x"]])
    {'x': 0, 'y': 1, 'z': 2}
    """
    numbers: dict[T, int] = {}
    for sequence in sequences:
        for item in sequence:
            numbers.setdefault(item, len(numbers))
    return numbers


def interaction_table(sequences: Sequence[Sequence[int]]) -> pl.DataFrame:
    """user_id, item_id, position, sorted by user and position.

    Args:
        sequences: one for each user, of item numbers, oldest first.

    Raises:
        UserError: a user has more than a position can count.
    """
    lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
    if lengths.max(initial=0) > LONGEST_SEQUENCE:
        raise UserError(f"a user has {lengths.max():,} interactions; no user of a public set has {LONGEST_SEQUENCE:,}")
    users = np.repeat(np.arange(len(sequences), dtype=np.int32), lengths)
    items = np.fromiter((item for sequence in sequences for item in sequence), np.int32, int(lengths.sum()))
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    positions = (np.arange(len(items)) - starts).astype(np.int16)
    return pl.DataFrame({USER_ID: users, ITEM_ID: items, POSITION: positions})


def counts_of(sequences: Sequence[Sequence[object]]) -> dict[str, int]:
    """Users, items and interactions."""
    items = {item for sequence in sequences for item in sequence}
    return {"users": len(sequences), "items": len(items), "interactions": sum(map(len, sequences))}


def hashes_of(sequences: Sequence[Sequence[str]]) -> dict[str, str]:
    """The three hashes, by name, the strictest first."""
    lines = [" ".join(sequence) for sequence in sequences]
    return {
        "numbering": hash_lines(lines),
        "sequences": hash_lines(sorted(lines)),
        "contents": hash_lines(sorted(" ".join(sorted(sequence)) for sequence in sequences)),
    }


def hash_lines(lines: Iterable[str]) -> str:
    """The sha256 of lines, each ended by a line feed."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()
