"""A circuit breaker for rewards: if one fails or hangs, lists come without it.

After several failures in a row the reward is not called for a while, then tried once. A timeout within a tenth of the
budget, when a request ran out of time, is no failure. A process asks one reward at a time, which need not be safe
beside itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Lock, Semaphore, Thread, local
from weakref import finalize

import torch
from torch import Tensor

from adagrpo.rewards.protocol import Reward, ask_reward
from adagrpo.types import Histories

Ask = Callable[[Reward, Histories, Tensor], Tensor]

LEAST_SHARE = 0.1  # of the budget; a timeout within less is not a failure
LONGEST = 300  # characters of a message that the operator is shown
AT_ONCE = 4  # calls that may hang at a time; beyond that none is begun
_ONE_AT_A_TIME = Lock()  # of all guarded rewards: several may call the same code


class _Asking(local):
    """What a thread asks with, and what became of it."""

    until = math.inf  # when its requests are out of time, by the clock
    failed = False  # a call since `begin`
    why = ""  # the last failure, in words


class CircuitBreaker:
    """A `Reward`; if the guarded one fails, scores are 0, and `failed` is true in the thread that asked."""

    def __init__(
        self,
        reward: Reward,
        *,
        budget_seconds: float = 1.0,
        failures: int = 3,
        pause_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.reward, self.budget, self.failures, self.pause = reward, budget_seconds, failures, pause_seconds
        self._asking = _Asking()
        self._say, self._is_silent, self._last = say, False, ""
        self._clock, self._in_a_row, self._closed_until = clock, 0, -1.0
        self._free, self._calls = Semaphore(AT_ONCE), SimpleQueue[Callable[[], None] | None]()
        for number in range(AT_ONCE):  # not those of an executor, which the end of the process would wait for
            Thread(target=_work, args=[self._calls], name=f"re-ranker-{number}", daemon=True).start()
        finalize(self, _end, self._calls)

    def begin(self, until: float = math.inf) -> None:
        """Forget this thread's failures; its next calls are out of time after `until`, by the clock."""
        self._asking.failed, self._asking.until = False, until

    @property
    def failed(self) -> bool:
        """Whether a call of this thread failed since `begin`."""
        return self._asking.failed

    @property
    def why(self) -> str:
        """The last failure of this thread's calls, in words."""
        return self._asking.why

    @property
    def failing(self) -> str | None:
        """Why the last call failed; None if it succeeded."""
        return self._last if self._is_silent else None

    @property
    def open(self) -> bool:
        """True while the reward is not called."""
        return self._clock() < self._closed_until

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        """See `Reward`; 0 if it fails."""
        scores = self.ask(ask_reward, histories, items)
        return torch.zeros(items.shape, device=items.device) if scores is None else scores

    def ask(self, ask: Ask, histories: Histories, items: Tensor) -> Tensor | None:
        """Return `ask(reward, histories, items)` with NaN as 0; None if it fails or is late."""
        left = self._asking.until - self._clock()
        scores, why = None, "the request has no time left"  # which is no failure of the reward
        if left > 0 and _ONE_AT_A_TIME.acquire(timeout=-1 if left == math.inf else left):
            try:
                scores, why = self._ask(ask, histories, items, min(self.budget, self._asking.until - self._clock()))
            finally:
                _ONE_AT_A_TIME.release()
        if scores is None:
            self._asking.failed, self._asking.why = True, why
        return scores

    def _ask(self, ask: Ask, histories: Histories, items: Tensor, budget: float) -> tuple[Tensor | None, str]:
        """The answer, and why there is none."""
        if self.open:
            return (
                None,
                f"not asked for {self.pause:g} s after {self.failures} failures in a row, the last: {self._last}",
            )
        if not self._free.acquire(blocking=False):
            return None, f"{AT_ONCE} calls hang"
        call, threads = Future[Tensor](), torch.get_num_threads()
        self._calls.put(lambda: self._answer(call, ask, histories, items, threads))
        try:
            scores = call.result(budget)
        except BaseException as error:  # SystemExit would end the thread that asks
            raised = call.done()  # else it is late: a reward may raise TimeoutError too
            cause = error.__cause__ or error  # the original exception, if ours wraps it
            why = f"raised {type(cause).__name__}" if raised else f"no answer in {budget:.3g} s"
            if raised or budget >= LEAST_SHARE * self.budget:
                self._count(why, f"{why} ({str(error)[:LONGEST]})" if raised and str(error) else why)
            return None, why
        self._in_a_row = 0
        if self._is_silent:
            self._is_silent = False
            self._say("the reward answers again")
        return scores, ""

    @torch.no_grad()
    def _answer(self, call: Future[Tensor], ask: Ask, histories: Histories, items: Tensor, threads: int) -> None:
        torch.set_num_threads(threads)  # as the thread that asks has
        try:
            call.set_result(ask(self.reward, histories, items).nan_to_num(0.0))
        except BaseException as error:  # SystemExit would end the thread
            call.set_exception(error)
        finally:
            self._free.release()

    def _count(self, why: str, reason: str) -> None:
        self._last = why
        if not self._is_silent:
            self._is_silent = True
            self._say(f"the reward gave no scores: {reason}; lists come without it until it does")
        self._in_a_row += 1
        if self._in_a_row >= self.failures:
            self._closed_until = self._clock() + self.pause
            self._in_a_row = self.failures - 1  # the one call after the pause decides


def answer_of(ask: Ask, reward: Reward, histories: Histories, items: Tensor) -> Tensor | None:
    """Return `ask(reward, histories, items)`; None if a guarded reward fails."""
    return reward.ask(ask, histories, items) if isinstance(reward, CircuitBreaker) else ask(reward, histories, items)


def _work(calls: SimpleQueue[Callable[[], None] | None]) -> None:
    """Run calls; holds no reference to the circuit breaker."""
    while (call := calls.get()) is not None:
        call()
        del call


def _end(calls: SimpleQueue[Callable[[], None] | None]) -> None:
    for _ in range(AT_ONCE):
        calls.put(None)
