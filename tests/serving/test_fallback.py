"""A reward that hangs, fails or answers nonsense never holds a list up, and the list says that it was not asked."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from adagrpo.lists.fallback import CircuitBreaker
from adagrpo.types import Histories

HISTORIES = Histories(torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, dtype=torch.int64))
ITEMS = torch.tensor([[1, 2, -1], [3, 4, 5]])


class Reward:
    """Scores an item by its number, once `go` is set."""

    name = "slow"

    def __init__(self) -> None:
        self.go, self.calls, self.error = threading.Event(), 0, None
        self.go.set()

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        self.calls += 1
        assert self.go.wait(10)
        if self.error is not None:
            raise self.error
        return items.float()


@pytest.fixture
def reward() -> Iterator[Reward]:
    made = Reward()
    yield made
    made.go.set()


def test_a_reward_in_time_gives_its_scores(reward: Reward) -> None:
    guard = CircuitBreaker(reward)
    assert guard.score(HISTORIES, ITEMS).tolist() == [[1, 2, 0], [3, 4, 5]]
    assert not guard.failed


@pytest.mark.parametrize("error", [RuntimeError("down"), SystemExit(3), None])
def test_a_reward_that_fails_or_hangs_gives_zeros_and_is_left_alone_for_a_while(
    reward: Reward, error: BaseException | None
) -> None:
    now = [0.0]
    guard = CircuitBreaker(reward, budget_seconds=0.05, failures=3, pause_seconds=10.0, clock=lambda: now[0])
    reward.error = error
    if error is None:
        reward.go.clear()
    started = time.monotonic()
    for turn in range(20):
        guard.begin()
        assert guard.score(HISTORIES, ITEMS).tolist() == [[0, 0, 0], [0, 0, 0]]
        assert guard.failed and guard.open == (turn >= 2)
    assert time.monotonic() - started < 2 and reward.calls == 3
    reward.go.set()
    now[0] = 10.5  # the one call after the pause decides
    guard.score(HISTORIES, ITEMS)
    assert reward.calls == 4 and guard.open == (error is not None)
    reward.error, now[0] = None, 30.0
    guard.begin()
    assert guard.score(HISTORIES, ITEMS).sum() == 15 and not guard.failed


def test_calls_that_hang_are_bounded_in_number(reward: Reward) -> None:
    reward.go.clear()
    guard = CircuitBreaker(reward, budget_seconds=0.02, failures=1000)
    for _ in range(20):
        guard.score(HISTORIES, ITEMS)
    assert reward.calls == 4


def test_scores_that_are_not_finite_are_a_failure(reward: Reward) -> None:
    reward.score = lambda histories, items: torch.full(items.shape, torch.nan)  # type: ignore[method-assign]
    guard = CircuitBreaker(reward)
    assert guard.score(HISTORIES, ITEMS).sum() == 0 and guard.failed


@pytest.mark.slow
def test_a_call_that_hangs_does_not_hold_up_the_end_of_the_process() -> None:
    program = """
import time, torch
from adagrpo.lists.fallback import CircuitBreaker
from adagrpo.types import Histories

class Hangs:
    name = "hangs"
    def score(self, histories, items):
        time.sleep(60)

guard = CircuitBreaker(Hangs(), budget_seconds=0.05)
one = torch.ones(1, 1, dtype=torch.int64)
guard.score(Histories(one, one[0]), one)
print(guard.failed)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout == "True\n"


def test_a_guard_that_is_gone_leaves_no_thread(reward: Reward) -> None:
    before = {*threading.enumerate()}  # those of guards that other tests made may end meanwhile
    guard = CircuitBreaker(reward)
    guard.score(HISTORIES, ITEMS)
    assert {*threading.enumerate()} - before
    del guard
    gc.collect()
    deadline = time.monotonic() + 5
    while {*threading.enumerate()} - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not {*threading.enumerate()} - before


def test_the_operator_is_told_once_when_it_fails_and_once_when_it_answers_again(reward: Reward) -> None:
    said: list[str] = []
    guard = CircuitBreaker(reward, budget_seconds=0.05, failures=1000, say=said.append)
    assert guard.failing is None
    reward.error = ValueError("down")
    for _ in range(3):
        guard.score(HISTORIES, ITEMS)
    assert guard.failing == "raised ValueError" and len(said) == 1 and "raised ValueError" in said[0]
    reward.error = None
    guard.score(HISTORIES, ITEMS)
    assert guard.failing is None and said[1:] == ["the reward answers again"]


def test_a_call_takes_no_longer_than_its_requests_have_left(reward: Reward) -> None:
    reward.go.clear()
    guard = CircuitBreaker(reward, budget_seconds=5.0)
    guard.begin(time.monotonic() + 0.5)  # a tenth of the budget
    started = time.monotonic()
    guard.score(HISTORIES, ITEMS)
    assert time.monotonic() - started < 2 and guard.why.startswith("no answer in 0.")


def test_a_request_without_time_is_no_failure_of_the_reward(reward: Reward) -> None:
    guard = CircuitBreaker(reward, failures=1)
    guard.begin(time.monotonic() - 0.01)
    guard.score(HISTORIES, ITEMS)
    assert guard.failed and guard.why == "the request has no time left"
    assert reward.calls == 0 and not guard.open and guard.failing is None


def test_requests_that_are_nearly_out_of_time_do_not_switch_a_reward_off(reward: Reward) -> None:
    guard = CircuitBreaker(reward, budget_seconds=1.0, failures=2)
    reward.go.clear()
    for _ in range(3):
        guard.begin(time.monotonic() + 0.02)
        guard.score(HISTORIES, ITEMS)
    assert guard.failed and guard.why.startswith("no answer in 0.0") and not guard.open and guard.failing is None
    for _ in range(2):  # with half of the budget its silence counts
        guard.begin(time.monotonic() + 0.5)
        guard._free.release()
        guard.score(HISTORIES, ITEMS)
    assert guard.open


def test_a_reward_that_raises_a_timeout_of_its_own_is_not_called_late(reward: Reward) -> None:
    guard = CircuitBreaker(reward)
    reward.error = TimeoutError()
    guard.score(HISTORIES, ITEMS)
    assert guard.why == "raised TimeoutError"


def test_threads_ask_one_at_a_time_and_each_knows_its_own_failures() -> None:
    inside, at_once, failed = 0, 0, dict[int, bool]()

    class Fragile:
        def score(self, histories: Histories, items: Tensor) -> Tensor:
            nonlocal inside, at_once
            inside += 1
            at_once = max(at_once, inside)
            time.sleep(0.02)
            inside -= 1
            if items[0, 0] == 9:
                raise ValueError("odd")
            return items.float()

    guards = [CircuitBreaker(Fragile(), budget_seconds=10, failures=1000) for _ in range(2)]

    def asks(number: int) -> None:
        guard, raises = guards[number % 2], number >= 2
        guard.begin()
        for _ in range(5):
            guard.score(HISTORIES, ITEMS.clamp(min=9) if raises else ITEMS)
        failed[number] = guard.failed

    threads = [threading.Thread(target=asks, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert at_once == 1 and failed == {0: False, 1: False, 2: True, 3: True}


def test_a_thread_waits_for_another_no_longer_than_its_requests_have_left(reward: Reward) -> None:
    reward.go.clear()
    guard = CircuitBreaker(reward, budget_seconds=5.0)
    holds = threading.Thread(target=guard.score, args=[HISTORIES, ITEMS])
    holds.start()
    while not reward.calls:
        time.sleep(0.001)
    started = time.monotonic()
    guard.begin(started + 0.1)
    guard.score(HISTORIES, ITEMS)
    assert time.monotonic() - started < 2 and guard.why == "the request has no time left" and reward.calls == 1
    reward.go.set()
    holds.join()
    assert guard.failing is None
