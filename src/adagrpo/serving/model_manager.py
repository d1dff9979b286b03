"""The served models: a recommender with its facts, and its exchange for another one under load.

A request keeps the one that it was read with, so that an answer is of one version whatever comes in between.
Another one is made and tried beside it; where that fails, the old one stays.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from adagrpo.errors import ServiceError, UserError
from adagrpo.lists.fallback import CircuitBreaker
from adagrpo.lists.query import ItemId, Query, Recommendations
from adagrpo.lists.recommender import Recommender
from adagrpo.serving.batch_queue import STEP

AFTER_REWARD = 0.02  # seconds of a request's time that are left for what comes after the reward


class TrialArm(NamedTuple):
    """The experiment and arm of an answer."""

    experiment: str
    plan: str  # the first digits of its hash
    arm: str  # of the plan, whose list is shown
    deal: str  # how the user came to it, see `adagrpo.experiments.dealing`
    versions: Mapping[str, str] | None = None  # of a list that two arms made; None: those of what is served


class Interleaved(NamedTuple):
    """Another arm, whose items are put between those of the first; see `adagrpo.experiments.interleaving`."""

    serving: Serving
    arms: tuple[str, str]  # of the plan: the first, and this one
    draft: Callable[[str, Sequence[ItemId], Sequence[ItemId], int], list[tuple[int, int]]]

    def join(self, first: Answered, second: Answered, request_id: str, count: int) -> Answered:
        """The list of both, with the arm of each item."""
        lists = (first.list, second.list)
        drafted = self.draft(request_id, first.list.items, second.list.items, count)
        made = Recommendations(
            [lists[arm].items[place] for arm, place in drafted],
            [lists[arm].scores[place] for arm, place in drafted],
            [lists[arm].codes[place] for arm, place in drafted],
            source=first.list.source,
        )
        teams = tuple(self.arms[arm] for arm, _ in drafted)
        return Answered(made, first.reranked and second.reranked, first.degraded or second.degraded, teams)


class Assignment(NamedTuple):
    """The model of a user, and its place in an experiment."""

    serving: Serving
    trial: TrialArm | None = None  # None: the answer is of no experiment
    interleaved: Interleaved | None = None  # None: the list is of one arm


class Asked(NamedTuple):
    """One list that is asked for, and of what."""

    serving: Serving
    query: Query
    trial: TrialArm | None = None
    deadline: float = math.inf  # of time.monotonic

    @property
    def narrowed(self) -> bool:
        """Check whether the request has a filter, or a rule on its history other than the service's."""
        query, usual = self.query, self.serving.recommender.exclude_history
        return bool(query.without) or query.eligible is not None or query.exclude_history not in (None, usual)

    @property
    def versions(self) -> Mapping[str, str]:
        """The versions that made the answer."""
        made = None if self.trial is None else self.trial.versions
        return self.serving.versions if made is None else made


class Answered(NamedTuple):
    """A list, and whether a reward ordered it."""

    list: Recommendations
    reranked: bool
    degraded: str | None = None  # why the list is not the one that is served else
    teams: tuple[str, ...] | None = None  # the arm of each item, where two made the list


@dataclass(frozen=True, eq=False)
class Serving:
    """A recommender with what it says of itself."""

    recommender: Recommender
    about: Mapping[str, Any]  # for /health
    versions: Mapping[str, str] = field(default_factory=lambda: {"model": "", "catalog": "", "arm": ""})
    reward_lock: threading.Lock = field(default_factory=threading.Lock)  # the reward; one batch does at a time

    @property
    def degraded(self) -> str | None:
        """Why lists come without the reward that orders them; None where they do not."""
        why = None if self._guard is None else self._guard.failing
        return None if why is None else f"reward: {why}"

    @property
    def _guard(self) -> CircuitBreaker | None:
        reward = self.recommender.reward
        return reward if isinstance(reward, CircuitBreaker) else None

    def answer(self, asked: Sequence[Asked]) -> list[Answered]:
        """The lists of requests, all of them for this recommender."""
        with self.exclusive_reward(min(one.deadline for one in asked) - AFTER_REWARD):
            return self._answer(asked)

    @contextmanager
    def exclusive_reward(self, until: float = math.inf) -> Iterator[None]:
        """Ask the reward alone in the block, so that `failed` says what came of it there.

        Args:
            until: when lists have to come without it, of time.monotonic.
        """
        if self.recommender.reward is None:
            yield
            return
        with self.reward_lock:
            guard = self._guard
            if guard is not None:
                guard.failed, guard.until = False, until
            try:
                yield
            finally:
                if guard is not None:
                    guard.until = math.inf

    def _answer(self, asked: Sequence[Asked]) -> list[Answered]:
        guard, queries = self._guard, [one.query for one in asked]
        lists = self.recommender.recommend([*queries, *queries[-1:] * (_size(len(queries)) - len(queries))])
        failed = guard is not None and guard.failed
        why = f"reward: {guard.why}" if guard is not None and failed else None
        answers = []
        for result in lists[: len(asked)]:
            asks = result.source not in ("popular", "sampled") and self.recommender.reward is not None
            answers.append(Answered(result, asks and not failed, why if asks else None))
        return answers


def _size(count: int) -> int:
    """The size of batch that `count` queries are worked on in: few sizes, see `adagrpo.serving.batch_queue`."""
    return 1 << (count - 1).bit_length() if count < STEP else -(-count // STEP) * STEP


class SwapFailed(RuntimeError):
    """The new model cannot be served; the old one is."""


class ModelManager:
    """Holds the models that are served now, and exchanges them."""

    def __init__(
        self,
        serving: Serving,
        load: Callable[..., Serving] | None = None,
        exchanged: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin with one.

        Args:
            load: makes another one, by the arm and checkpoint that are named; raises `UserError` or `ServiceError`.
            exchanged: called after each exchange, when the old one is held by requests that are on their way alone.
        """
        self._load, self._exchanged = load, exchanged
        self._replace([serving])
        self._loading = threading.Lock()

    @property
    def now(self) -> Serving:
        """The first of the served models: the only one, or the control."""
        return self._served[0]

    @property
    def loading(self) -> bool:
        """True while another model is being loaded to be served."""
        return self._loading.locked()

    def swap(self, *, after_others: bool = False, **wanted: str) -> Serving:
        """Load another one, try it, and serve it from now on. Takes as long as loading does.

        Args:
            after_others: wait for a swap that is going on, which may have read what was there before.

        Raises:
            SwapFailed: it cannot be loaded, or does not answer, or another swap is going on; the reason is its message.
        """
        if not self._loading.acquire(blocking=after_others):
            raise SwapFailed("another one is being loaded")
        try:
            made = self._fetch(**wanted)  # beside what is served
            for serving in made:
                serving.answer([Asked(serving, Query([0]))])
            self._replace(made)
            self._exchanged()
        except SwapFailed:
            raise
        except (UserError, ServiceError) as error:
            raise SwapFailed(str(error)) from error
        except Exception as error:  # whatever a damaged file leads to: the old one goes on
            raise SwapFailed(f"it does not answer ({type(error).__name__})") from error
        finally:
            self._loading.release()
        return self.now

    def assign(self, users: Sequence[str | None]) -> list[Assignment]:
        """Assign users, by their hashes, to models; None: the request names none. All were exchanged at once."""
        return [Assignment(self.now)] * len(users)

    def _fetch(self, **wanted: str) -> Sequence[Serving]:
        """Load the models that a swap would serve."""
        if self._load is None:
            raise SwapFailed("there is nothing to load another one from")
        return [self._load(**wanted)]

    def _replace(self, made: Sequence[Serving]) -> None:
        """Serve the loaded models, in one assignment: readers find models that belong together."""
        self._served = tuple(made)

    def load_other(self, **wanted: str) -> Serving:
        """Load another one that is not served, to be looked at.

        Raises:
            UserError: there is nothing to load it from, or it cannot be loaded.
        """
        if self._load is None:
            raise UserError("there is nothing to load another one from")
        return self._load(**wanted)

    @property
    def degraded(self) -> str | None:
        """Why lists of a served model come without its reward; None where none do."""
        found = [(serving.about.get("arm"), serving.degraded) for serving in self._served]
        return next((why if len(found) == 1 else f"{arm}: {why}" for arm, why in found if why is not None), None)

    def answer(self, asked: Sequence[Asked]) -> list[Answered | Exception]:
        """The lists of requests, each by what it was read with; where a model raises, what it raised."""
        answers: dict[int, Answered | Exception] = {}
        for serving in {one.serving for one in asked}:
            rows = [row for row, one in enumerate(asked) if one.serving is serving]
            try:
                answers |= zip(rows, serving.answer([asked[row] for row in rows]), strict=True)
            except Exception as error:  # other models answer their requests all the same
                answers |= dict.fromkeys(rows, error)
        return [answers[row] for row in range(len(asked))]
