"""A reward that re-ranks may fail or hang; lists then come in the policy's order, and say so.

Each call has a budget of time. After several failures in a row the reward is not asked for a while, then once again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Semaphore, Thread
from weakref import finalize

import torch
from torch import Tensor

from adagrpo.rewards.protocol import Reward
from adagrpo.rewards.scoring import ask_reward
from adagrpo.types import Histories

__all__ = ["CircuitBreaker"]

AT_ONCE = 4  # calls that may hang at a time; beyond that none is begun


class CircuitBreaker:
    """Implements `adagrpo.rewards.protocol.Reward`: zeros, and `failed`, where the reward gave no scores in time."""

    def __init__(
        self,
        reward: Reward,
        *,
        budget_seconds: float = 0.25,
        failures: int = 3,
        pause_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Put a reward behind a guard.

        Args:
            reward: may hang.
            budget_seconds: for one call.
            failures: in a row, after which it is not asked for a while.
            pause_seconds: the while.
            clock: of seconds.
        """
        self.reward, self.budget, self.failures, self.pause = reward, budget_seconds, failures, pause_seconds
        self.failed = False  # since the caller set it to false
        self.fallbacks = self.opened = 0
        self._clock, self._in_a_row, self._closed_until = clock, 0, -1.0
        self._free, self._calls = Semaphore(AT_ONCE), SimpleQueue[Callable[[], None] | None]()
        for number in range(AT_ONCE):  # not those of an executor, which the end of the process would wait for
            Thread(target=_work, args=[self._calls], name=f"re-ranker-{number}", daemon=True).start()
        finalize(self, _end, self._calls)

    @property
    def open(self) -> bool:
        """True while the reward is not asked."""
        return self._clock() < self._closed_until

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        """Score (B, N) items, see `Reward.score`; zeros where the reward fails."""
        if not self.open and self._free.acquire(blocking=False):
            call = Future[Tensor]()
            self._calls.put(lambda: self._answer(call, histories, items))
            try:
                scores = call.result(self.budget)
            except BaseException:  # late, or whatever it raised: SystemExit would end the thread that asks
                self._count()
            else:
                self._in_a_row = 0
                return scores
        self.failed = True
        self.fallbacks += 1
        return torch.zeros(items.shape, device=items.device)

    @torch.no_grad()
    def _answer(self, call: Future[Tensor], histories: Histories, items: Tensor) -> None:
        try:
            call.set_result(ask_reward(self.reward, histories, items).nan_to_num(0.0))
        except BaseException as error:  # SystemExit would end the thread
            call.set_exception(error)
        finally:
            self._free.release()

    def _count(self) -> None:
        self._in_a_row += 1
        if self._in_a_row >= self.failures:
            self._closed_until = self._clock() + self.pause
            self._in_a_row = self.failures - 1  # the one call after the pause decides
            self.opened += 1


def _work(calls: SimpleQueue[Callable[[], None] | None]) -> None:
    """Carry out calls; holds nothing of a guard that is gone."""
    while (call := calls.get()) is not None:
        call()
        del call


def _end(calls: SimpleQueue[Callable[[], None] | None]) -> None:
    for _ in range(AT_ONCE):
        calls.put(None)
