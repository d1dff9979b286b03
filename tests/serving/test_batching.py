from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future

import pytest

from adagrpo.serving import MicroBatcher, Overloaded


class Slow:
    """Work that waits to be let go, and remembers its batches."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, values: Sequence[int]) -> list[int]:
        self.batches.append(list(values))
        self.begun.set()
        assert self.go.wait(10)
        if -1 in values:
            raise ValueError("no -1")
        return [value * value for value in values]


def started(most: int = 64, waiting: int = 1024) -> tuple[Slow, MicroBatcher[int, int], Future[int]]:
    """A batcher that is busy with 7."""
    work = Slow()
    batcher = MicroBatcher[int, int](work, most=most, waiting=waiting)
    first = batcher.submit(7)
    assert work.begun.wait(10)
    return work, batcher, first


def test_what_waits_is_worked_on_together_and_answered_in_its_order() -> None:
    work, batcher, first = started(most=4)
    others = [batcher.submit(value) for value in range(6)]
    work.go.set()
    assert first.result(10) == 49
    assert [other.result(10) for other in others] == [0, 1, 4, 9, 16, 25]
    assert work.batches == [[7], [0, 1, 2, 3], [4, 5]]
    batcher.close()


def test_what_fails_fails_its_batch_alone() -> None:
    work, batcher, first = started(most=2)
    others = [batcher.submit(value) for value in (-1, 3, 4)]
    work.go.set()
    assert first.result(10) == 49
    for failed in others[:2]:
        with pytest.raises(ValueError, match="no -1"):
            failed.result(10)
    assert others[2].result(10) == 16
    batcher.close()


def test_more_than_may_wait_are_turned_away_at_once() -> None:
    work, batcher, _ = started(waiting=2)
    kept = [batcher.submit(1), batcher.submit(2)]
    with pytest.raises(Overloaded, match="2 requests wait"):
        batcher.submit(3)
    work.go.set()
    assert [future.result(10) for future in kept] == [1, 4]
    batcher.close()


def test_closing_answers_what_waits_and_leaves_out_what_was_given_up() -> None:
    work, batcher, _ = started()
    kept, given_up = batcher.submit(2), batcher.submit(3)
    assert given_up.cancel()
    work.go.set()
    batcher.close()
    assert kept.result(0) == 4
    assert work.batches == [[7], [2]]
    with pytest.raises(Overloaded, match="nothing is taken any more"):
        batcher.submit(5)  # what nobody would answer
