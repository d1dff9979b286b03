"""Estimators against numbers worked out by hand, against loops, and against enumeration of all that can happen."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest

from adagrpo.off_policy import ThinOverlap, cascade, doubly_robust, effective_size, ips, overlap, snips

REWARDS, WEIGHTS = np.array([1.0, 0.0, 2.0, 0.0]), np.array([2.0, 1.0, 0.5, 0.5])


def test_ips_is_the_mean_of_weighted_rewards() -> None:
    found = ips(REWARDS, WEIGHTS)  # values 2, 0, 1, 0: mean 0.75, squares about it 1.5625, .5625, .0625, .5625
    assert found.value == pytest.approx(0.75)
    assert found.standard_error == pytest.approx(math.sqrt(2.75 / 3 / 4))
    assert found.high - found.low == pytest.approx(
        2 * 3.182446 * found.standard_error, rel=1e-6
    )  # Student's, 3 degrees
    assert found.effective_size == pytest.approx(16 / 5.5)


def test_snips_divides_by_the_weights_and_has_the_error_of_a_ratio() -> None:
    found = snips(REWARDS, WEIGHTS)
    assert found.value == pytest.approx(0.75)  # 3 / 4: the weights sum to 4
    heavier = snips(REWARDS, 10 * WEIGHTS)
    assert heavier == pytest.approx(found)  # only their ratios count
    residuals = WEIGHTS * (REWARDS - 0.75)  # 0.5, -0.75, 0.625, -0.375
    assert found.standard_error == pytest.approx(math.sqrt(np.square(residuals).sum() / 3 / 4))
    assert snips(np.ones(4), WEIGHTS).standard_error == 0.0


def test_doubly_robust_corrects_a_model_by_its_weighted_errors() -> None:
    predicted, expected = np.array([0.5, 0.5, 1.0, 0.0]), np.array([0.2, 0.4, 0.6, 0.8])
    # corrections 2 * .5, 1 * -.5, .5 * 1, 0
    assert doubly_robust(REWARDS, WEIGHTS, predicted, expected).value == pytest.approx((2.0 + 1.0) / 4)
    perfect = doubly_robust(REWARDS, WEIGHTS, REWARDS, expected)
    assert perfect.value == pytest.approx(0.5)


def test_answers_of_one_user_count_together() -> None:
    users = np.array([7, 7, 3, 3])  # sums about the mean: 1.25 - .75, .25 - .75
    found = ips(REWARDS, WEIGHTS, users=users)
    assert found.standard_error == pytest.approx(math.sqrt(2 / 1 * (0.5**2 + 0.5**2)) / 4)
    with pytest.raises(ValueError, match="two users"):
        ips(REWARDS, WEIGHTS, users=np.zeros(4, int))


def test_estimators_are_unbiased_over_all_that_can_be_shown() -> None:
    """Two contexts, three actions; each log of two answers, weighted by its probability."""
    logging = np.array([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]])
    target = np.array([[0.1, 0.2, 0.7], [0.4, 0.4, 0.2]])
    reward = np.array([[0.2, 0.5, 0.9], [0.3, 0.1, 0.7]])
    model = np.array([[0.4, 0.4, 0.1], [0.9, 0.2, 0.3]])  # wrong
    truth = (target * reward).sum(1).mean()
    means = dict.fromkeys(("ips", "dr"), 0.0)
    for one, two in itertools.product(range(3), range(3)):
        contexts, actions = np.array([0, 1]), np.array([one, two])
        chance = logging[contexts, actions].prod()
        weights, rewards = (target / logging)[contexts, actions], reward[contexts, actions]
        means["ips"] += chance * ips(rewards, weights).value
        expected = (target * model).sum(1)
        means["dr"] += chance * doubly_robust(rewards, weights, model[contexts, actions], expected).value
    assert means == pytest.approx({"ips": truth, "dr": truth})


def plackett_luce(chances: np.ndarray, items: tuple[int, ...]) -> list[float]:
    """The log-probability of each place given those above."""
    left, result = 1.0, []
    for item in items:
        result.append(math.log(chances[item] / left))
        left -= chances[item]
    return result


def test_the_cascade_is_unbiased_where_users_read_from_the_top() -> None:
    logging, target = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.1, 0.2, 0.3, 0.4])
    wanted = np.array([0.2, 0.9, 0.5, 0.7])
    lists = list(itertools.permutations(range(4), 3))

    def rewards(items: tuple[int, ...]) -> list[float]:
        """The chance that the first click is at each place."""
        return [
            wanted[item] * math.prod(1 - wanted[above] for above in items[:place]) for place, item in enumerate(items)
        ]

    truth = sum(math.exp(sum(plackett_luce(target, items))) * sum(rewards(items)) for items in lists)
    chances = [math.exp(sum(plackett_luce(logging, items))) for items in lists]
    rows = [
        [np.array([of]) for of in (rewards(items), plackett_luce(target, items), plackett_luce(logging, items))]
        for items in lists
    ]
    each = [cascade(*(np.repeat(part, 2, 0) for part in row), normalised=False).value for row in rows]
    assert np.dot(chances, each) == pytest.approx(truth, rel=1e-12)
    # as if the lists had come exactly as often as they are probable: the weights of a place sum to 1
    often = np.repeat(np.arange(len(lists)), np.round(np.array(chances) * 100_000).astype(int))
    stacked = [np.concatenate([row[part] for row in rows])[often] for part in range(3)]
    assert cascade(*stacked).value == pytest.approx(truth, rel=1e-3)


def test_a_cascade_of_one_place_is_ips_or_snips_and_missing_places_weigh_nothing() -> None:
    target = np.log(WEIGHTS)[:, None]
    logged = np.zeros_like(target)
    assert cascade(REWARDS[:, None], target, logged, normalised=False) == pytest.approx(ips(REWARDS, WEIGHTS))
    assert cascade(REWARDS[:, None], target, logged) == pytest.approx(snips(REWARDS, WEIGHTS))
    longer = [np.pad(part, ((0, 0), (0, 2))) for part in (REWARDS[:, None], target, logged)]
    assert cascade(*longer) == pytest.approx(snips(REWARDS, WEIGHTS))
    never = np.full_like(target, -np.inf)
    with pytest.raises(ValueError, match="never shows a list of the log down to rank 1"):
        cascade(REWARDS[:, None], never, logged)


def test_overlap_says_what_is_wrong_with_a_log() -> None:
    rng = np.random.default_rng(0)
    good = rng.choice([0.5, 1.5], 1000)
    assert overlap(good).problem is None
    overlap(good).check()
    assert effective_size(np.ones(7)) == 7.0 and effective_size(np.zeros(3)) == 0.0
    heavy = np.append(np.full(10_000, 1.0), 1500.0)  # alone a seventh of all weight
    cases = {
        "weights are 0.7": overlap(0.7 * good / good.mean()),  # a third of what the policy shows is never in the log
        "all answers together weigh as much as 20; at least 100 are needed": overlap(np.ones(20)),
        "all answers together weigh as much as 59; at least 100 are needed": overlap(heavy),
        "weights are 1.9": overlap(1.95 * good / good.mean()),
    }
    for words, found in cases.items():
        assert found.problem is not None and found.problem.startswith(words), found.problem
        with pytest.raises(ThinOverlap, match="are"):
            found.check()
    spread = overlap(np.append(np.full(100_000, 0.9), 11_000.0))._replace(effective_size=150.0)
    assert spread.problem == "one answer carries 11% of all weight"


@pytest.mark.parametrize("bad", [np.array([]), np.array([1.0, np.nan]), np.array([1.0, -1.0])])
def test_what_is_no_weight_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="weights"):
        overlap(bad)


def test_what_is_no_log_is_refused() -> None:
    with pytest.raises(ValueError, match="weights must be"):
        ips(REWARDS, WEIGHTS[:2])
    with pytest.raises(ValueError, match="not finite"):
        ips(np.array([1.0, np.inf]), np.ones(2))
    with pytest.raises(ValueError, match="must be \\(N, K\\)"):
        cascade(REWARDS, WEIGHTS, WEIGHTS)


def test_the_python_of_the_page_runs() -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "off-policy.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(code, str(page), "exec"), {})
