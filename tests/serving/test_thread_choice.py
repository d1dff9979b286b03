"""Threads of a request alone: the number that was measured to be faster, and as before afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from adagrpo.serving.thread_choice import faster_threads, threads


@pytest.fixture(autouse=True)
def three() -> Iterator[None]:
    with threads(3):
        yield


@pytest.mark.parametrize(("seconds", "chosen"), [({1: 2.0, 3: 1.0}, 3), ({1: 1.0, 3: 2.0}, 1), ({1: 1.0, 3: 1.0}, 1)])
def test_the_faster_number_is_chosen(seconds: dict[int, float], chosen: int) -> None:
    now, seen = 0.0, []

    def work() -> None:
        nonlocal now
        seen.append(torch.get_num_threads())
        now += seconds[seen[-1]] + (100.0 if len(seen) <= 2 else 0.0)  # the first time takes longer

    assert faster_threads(work, lambda: now) == chosen
    assert {*seen} == {1, 3} and seen[:4] == [1, 3, 1, 3] and torch.get_num_threads() == 3


def test_one_thread_needs_no_measurement_and_an_error_leaves_the_number_as_it_was() -> None:
    def fails() -> None:
        raise RuntimeError

    with threads(1):
        assert faster_threads(fails) == 1
    with pytest.raises(RuntimeError):
        faster_threads(fails)
    assert torch.get_num_threads() == 3
    with threads(None):
        assert torch.get_num_threads() == 3
