"""Served models, and their replacement under load.

A request keeps the model it was read with. A new one is loaded and tried while the old one serves.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from adagrpo.errors import ServiceError, UserError
from adagrpo.lists.fallback import CircuitBreaker
from adagrpo.lists.query import Query, Recommendations
from adagrpo.lists.recommender import Recommender
from adagrpo.serving.batch_queue import STEP
from adagrpo.types import ItemId

AFTER_REWARD = 0.02  # seconds kept for work after the reward


class TrialArm(NamedTuple):
    """Experiment and arm of an answer."""

    experiment: str
    plan: str  # the first digits of its hash
    arm: str  # of the plan
    reason: str  # why the user got it, see `adagrpo.experiments.allocation`
    versions: Mapping[str, str] | None = None  # of an interleaved list; None: those of the served model


class Interleaved(NamedTuple):
    """Second arm of an interleaved list."""

    serving: Serving
    arms: tuple[str, str]  # of the plan: the first, and this one
    draft: Callable[[str, Sequence[ItemId], Sequence[ItemId], int], list[tuple[int, int]]]

    def join(self, first: Answered, second: Answered, request_id: str, count: int) -> Answered:
        """Return the interleaved list, with the arm of each item."""
        lists = (first.list, second.list)
        drafted = self.draft(request_id, first.list.items, second.list.items, count)
        made = Recommendations(
            [lists[arm].items[rank] for arm, rank in drafted],
            [lists[arm].scores[rank] for arm, rank in drafted],
            [lists[arm].codes[rank] for arm, rank in drafted],
            source=first.list.source,
        )
        teams = tuple(self.arms[arm] for arm, _ in drafted)
        return Answered(made, first.reranked and second.reranked, first.degraded or second.degraded, teams)


class Assignment(NamedTuple):
    """Model of a user, and the user's arm in an experiment."""

    serving: Serving
    trial: TrialArm | None = None  # None: not in an experiment
    interleaved: Interleaved | None = None  # None: a list of one arm


class Asked(NamedTuple):
    """Request for one list."""

    serving: Serving
    query: Query
    trial: TrialArm | None = None
    deadline: float = math.inf  # of time.monotonic

    @property
    def narrowed(self) -> bool:
        """Whether the request has a filter, or a history rule other than the service's."""
        query, usual = self.query, self.serving.recommender.exclude_history
        return bool(query.without) or query.eligible is not None or query.exclude_history not in (None, usual)

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions that made the answer."""
        made = None if self.trial is None else self.trial.versions
        return self.serving.versions if made is None else made


class Answered(NamedTuple):
    """List of items, and whether a reward re-ranked it."""

    list: Recommendations
    reranked: bool
    degraded: str | None = None  # why this is not the usual list
    teams: tuple[str, ...] | None = None  # arm of each item of an interleaved list


@dataclass(frozen=True, eq=False)
class Serving:
    """Recommender with its metadata."""

    recommender: Recommender
    about: Mapping[str, Any]  # for /health
    versions: Mapping[str, str] = field(default_factory=lambda: {"model": "", "catalog": "", "arm": ""})

    @property
    def degraded(self) -> str | None:
        """Why lists come without the reward, or None."""
        why = None if self._guard is None else self._guard.failing
        return None if why is None else f"reward: {why}"

    @property
    def _guard(self) -> CircuitBreaker | None:
        reward = self.recommender.reward
        return reward if isinstance(reward, CircuitBreaker) else None

    def answer(self, asked: Sequence[Asked]) -> list[Answered]:
        """Return the lists of requests to this recommender."""
        queries, count = [one.query for one in asked], len(asked)
        size = 1 << (count - 1).bit_length() if count < STEP else -(-count // STEP) * STEP  # see `batch_queue`
        self.begin(min(one.deadline for one in asked) - AFTER_REWARD)
        lists = self.recommender.recommend([*queries, *queries[-1:] * (size - count)])
        guard = self._guard
        failed = guard is not None and guard.failed
        why = f"reward: {guard.why}" if guard is not None and failed else None
        answers = []
        for result in lists[:count]:
            asks = result.source not in ("popular", "sampled") and self.recommender.reward is not None
            answers.append(Answered(result, asks and not failed, why if asks else None))
        return answers

    def begin(self, until: float) -> None:
        """Forget the reward's failures in this thread; after `until` (monotonic) its lists come without the reward."""
        if self._guard is not None:
            self._guard.begin(until)


class SwapFailed(RuntimeError):
    """Raised when a new model cannot be served; the old one stays."""


class ModelManager:
    """Hold the served models and replace them."""

    def __init__(
        self, serving: Serving, load: Callable[..., Serving] | None = None, exchanged: Callable[[], None] = lambda: None
    ) -> None:
        """Start with one model; `load` loads another by arm and checkpoint, `exchanged` is called after each swap."""
        self._load, self._exchanged = load, exchanged
        self._served: Sequence[Serving] = (serving,)
        self._loading = threading.Lock()

    @property
    def now(self) -> Serving:
        """First served model: the only one, or the control."""
        return self._served[0]

    @property
    def loading(self) -> bool:
        """Whether another model is being loaded."""
        return self._loading.locked()

    def swap(self, *, after_others: bool = False, **wanted: str) -> Serving:
        """Load another model, try it, and serve it from now on, `after_others` after a running swap.

        Raises:
            SwapFailed: it failed, or another swap is running.
        """
        if not self._loading.acquire(blocking=after_others):
            raise SwapFailed("another one is being loaded")
        try:
            made = self._fetch(**wanted)  # while the old one serves
            for serving in made:
                serving.answer([Asked(serving, Query([0]))])
            self._served = tuple(made)  # in one assignment: readers never see two swaps
            self._exchanged()
        except SwapFailed:
            raise
        except (UserError, ServiceError) as error:
            raise SwapFailed(str(error)) from error
        except Exception as error:  # such as of a damaged file
            raise SwapFailed(f"it does not answer ({type(error).__name__})") from error
        finally:
            self._loading.release()
        return self.now

    def assign(self, users: Sequence[str | None]) -> list[Assignment]:
        """Assign users, by hash or None, to models of one swap."""
        return [Assignment(self.now)] * len(users)

    def _fetch(self, **wanted: str) -> Sequence[Serving]:
        return [self.load_other(**wanted)]

    def load_other(self, **wanted: str) -> Serving:
        """Load a model for inspection; `UserError` if it cannot be loaded."""
        if self._load is None:
            raise UserError("there is nothing to load another one from")
        return self._load(**wanted)

    @property
    def degraded(self) -> str | None:
        """Why a served model lacks its reward, or None."""
        found = [(serving.about.get("arm"), serving.degraded) for serving in self._served]
        return next((why if len(found) == 1 else f"{arm}: {why}" for arm, why in found if why is not None), None)

    def answer(self, asked: Sequence[Asked]) -> list[Answered | Exception]:
        """Return the list of each request, or the exception its model raised."""
        answers: dict[int, Answered | Exception] = {}
        for serving in {one.serving for one in asked}:
            rows = [row for row, one in enumerate(asked) if one.serving is serving]
            try:
                answers |= zip(rows, serving.answer([asked[row] for row in rows]), strict=True)
            except Exception as error:  # other models still answer
                answers |= dict.fromkeys(rows, error)
        return [answers[row] for row in range(len(asked))]
