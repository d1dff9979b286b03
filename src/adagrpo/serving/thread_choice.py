"""How many threads a request that is alone is computed with.

One history is small work: threads that wait for each other can take longer than one thread alone. How long depends on
the machine and the policy, so it is measured when a service starts. Several requests together have all threads.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

__all__ = ["faster_threads", "threads"]

ROUNDS = 7


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Compute with so many threads in the block; None leaves it as it is."""
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def faster_threads(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> int:
    """One thread, or as many as are set: with which a piece of work takes less time. Equal medians go to one.

    Both are timed in turn, so that what else the machine does meets both.

    Args:
        work: that is done a few times.
        clock: seconds.
    """
    choices = (1, torch.get_num_threads())
    if choices[1] == 1:
        return 1
    seconds: dict[int, list[float]] = {count: [] for count in choices}
    for turn in range(1 + ROUNDS):
        for count in choices:
            with threads(count):
                started = clock()
                work()
                if turn:
                    seconds[count].append(clock() - started)
    return min(choices, key=lambda count: statistics.median(seconds[count]))
