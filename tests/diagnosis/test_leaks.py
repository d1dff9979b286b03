"""Which rewards are named as probably leaking: planted ones are, honest ones are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adagrpo.diagnosis.leaks import Answers, Questions, answers, leak_signs, with_last_fitted
from adagrpo.diagnosis.verdict import leak_reason
from adagrpo.types import Cases, Histories, Ragged

USERS, DRAWN = 1000, 20


class Table:
    """A reward that reads the scores of an item for a user off a table; a history's first item is the user."""

    def __init__(self, scores: np.ndarray) -> None:
        self.scores = torch.from_numpy(scores)

    def score(self, histories: Histories, items: torch.Tensor) -> torch.Tensor:
        return self.scores[histories.items[:, :1], items.clamp(min=0)]


def asked(scores: np.ndarray) -> Answers:
    """Item 0 is the last training item and item 1 the held-out one of every user."""
    users = np.arange(USERS, dtype=np.int32)
    histories = Ragged(users, np.arange(USERS + 1))
    ones = np.ones(USERS, np.int32)
    questions = Questions(Cases(users, histories, ones), Cases(users, histories, 0 * ones))
    drawn = np.tile(np.arange(2, 2 + DRAWN), (USERS, 1))
    drawn[::3, -1] = -1
    return answers(Table(scores), questions, drawn, max_history=5, batch_size=64, device=torch.device("cpu"))


def scores(seed: int, held_out: float, fitted: float) -> np.ndarray:
    """Normal scores; the logged items have some more."""
    found = np.random.default_rng(seed).normal(size=(USERS, 2 + DRAWN))
    found[:, 1] += held_out
    found[:, 0] += fitted
    return found


REFERENCES = {"item-kNN": asked(scores(1, 1.0, 1.5)), "another": asked(scores(2, 0.5, 0.5))}


@pytest.mark.parametrize(("held_out", "fitted"), [(1.0, 1.0), (1.0, 2.0), (1.5, 1.5), (0.0, 0.0), (1.4, 3.0)])
def test_honest_rewards_are_not_named(held_out: float, fitted: float) -> None:
    for seed in range(10, 15):
        found = leak_signs(asked(scores(seed, held_out, fitted)), REFERENCES)
        assert found["signs"] == [] and found["cases"] == USERS and leak_reason(found) is None


def leaking(share: float, above: float, *, fitted: bool) -> np.ndarray:
    known, found = np.random.default_rng(3).random(USERS) < share, scores(4, 1.0, 1.0)
    found[known, 1] += above
    if fitted:
        found[known, 0] += above
    return found


@pytest.mark.parametrize(
    ("share", "above", "fitted", "sign"),
    [
        (1.0, 9.0, False, "remembers"),
        (1.0, 9.0, True, "ahead"),
        (0.3, 20.0, False, "remembers"),
        (0.3, 20.0, True, "certain"),
        (0.1, 20.0, True, "certain"),
        (1.0, 1.0, False, "remembers"),
        (1.0, 2.0, True, "ahead"),
    ],
)
def test_planted_leaks_are_named_by_what_shows_them(share: float, above: float, fitted: bool, sign: str) -> None:
    found = leak_signs(asked(leaking(share, above, fitted=fitted)), REFERENCES)
    assert sign in found["signs"]
    reason = leak_reason(found)
    assert (reason is not None and f"{100 * found['hr@1']['held-out items']:.1f} %" in reason) or sign == "certain"


def test_few_cases_name_nothing() -> None:
    few = [
        Answers(*(part[:15] for part in one)) for one in (asked(leaking(1.0, 9.0, fitted=False)), *REFERENCES.values())
    ]
    assert leak_signs(few[0], {"a": few[1]})["signs"] == []


def test_one_place_is_shared_by_equal_scores_and_an_item_that_is_none_takes_none() -> None:
    flat = asked(np.zeros((USERS, 2 + DRAWN)))
    assert set(flat.held_out) == {1 / DRAWN, 1 / (1 + DRAWN)} and not flat.margins.any()
    assert not asked(np.where(np.arange(2 + DRAWN) == 1, -1.0, np.zeros((USERS, 1)))).held_out.any()


def test_the_second_question_is_the_last_training_item_after_what_came_before() -> None:
    training = Ragged(np.array([5, 6, 7, 8, 9, 1], np.int32), np.array([0, 3, 4, 6]))
    cases = Cases(
        np.array([0, 1, 2], np.int32),
        Ragged(np.array([5, 6, 7, 8, 9, 1, 2], np.int32), np.array([0, 3, 4, 7])),
        np.array([3, 3, 4], np.int32),
    )
    held_out, fitted = with_last_fitted(training, cases)
    assert held_out.users.tolist() == fitted.users.tolist() == [0, 2]  # the other has nothing before its last item
    assert fitted.targets.tolist() == [7, 1] and [fitted.histories.row(n).tolist() for n in range(2)] == [[5, 6], [9]]
    assert held_out.targets.tolist() == [3, 4] and held_out.histories.row(1).tolist() == [9, 1, 2]


def test_the_last_training_item_is_asked_after_the_basket_before_its_own() -> None:
    baskets = np.array([0, 1, 1, 0, 0], np.int32)
    training = Ragged(np.array([5, 6, 7, 8, 9], np.int32), np.array([0, 3, 5]), baskets=baskets)
    users = np.array([0, 1], np.int32)
    cases = Cases(users, Ragged(np.array([5, 8], np.int32), np.array([0, 1, 2])), np.array([1, 2], np.int32))
    held_out, fitted = with_last_fitted(training, cases)
    assert held_out.users.tolist() == fitted.users.tolist() == [0]  # the other user's last item has nothing before it
    assert fitted.histories.row(0).tolist() == [5] and fitted.targets.tolist() == [7]
