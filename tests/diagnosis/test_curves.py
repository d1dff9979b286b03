"""The curve over weights and the order by exposure, with numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from adagrpo.diagnosis.assessment import order_by_exposure, weight_curve
from adagrpo.diagnosis.orders import Lists, cross_fitted_mix
from adagrpo.evaluation.reranking import WEIGHTS

FEW = 200


def test_the_curve_at_its_ends() -> None:
    """The logged item is second for the policy and first for the ranker in every case."""
    cases = 8
    items = np.tile([[7, 4, 5]], (cases, 1))
    log_probs, rewards = np.tile([[-1.0, -2.0, -3.0]], (cases, 1)), np.tile([[0.0, 3.0, 0.0]], (cases, 1))
    lists = Lists(items, log_probs, rewards, np.full(cases, 4))
    mix = cross_fitted_mix(lists, np.arange(cases) % 2 == 0)
    curve = weight_curve(lists, mix, resamples=FEW, seed=0)
    assert curve["weights"] == [*WEIGHTS, None]
    gain = 1.0 - 1 / math.log2(3)  # from the second place to the first
    # sigma is the deviation of (0, 3, 0), so that w = 0.5 adds 1.06 to the second, more than it is behind
    expected = [gain if weight is None or weight >= 0.5 else 0.0 for weight in curve["weights"]]
    assert mix.within_list_std == pytest.approx(math.sqrt(2), rel=1e-12)
    assert [row["ndcg@10"]["mean"] for row in curve["ranker"]] == pytest.approx(expected, abs=1e-12)
    assert [row["hr@10"]["mean"] for row in curve["ranker"]] == [0.0] * len(curve["weights"])
    assert curve["chosen"] == [0.5, 0.5] and curve["mix"]["ndcg@10"]["mean"] == pytest.approx(gain, rel=1e-12)
    assert curve["shuffled"][0]["ndcg@10"]["mean"] == 0.0  # at weight 0 nobody is asked
    assert curve["shuffled"][-1]["ndcg@10"]["mean"] < gain


def two_cases() -> tuple[Lists, np.ndarray]:
    """Items 0 to 2 were shown 1, 2 and 2 times, items 3 to 6 between 10 and 13 times."""
    items = np.array([[3, 0, 1, 2, 4], [5, 3, 6, 0, -1]])
    log_probs = np.array([[-1.0, -2.0, -3.0, -4.0, -5.0], [-1.0, -2.0, -3.0, -4.0, -np.inf]])
    rewards = np.array([[9.0, 2.0, 1.0, 2.0, 9.0], [1.0, 0.0, 2.0, 5.0, 0.0]])
    return Lists(items, log_probs, rewards, np.array([0, 5])), np.array([1, 2, 2, 10, 11, 12, 13])


def test_items_are_compared_within_their_bin_alone() -> None:
    lists, counts = two_cases()
    result = order_by_exposure(lists, counts, "times shown", resamples=FEW, seed=0)
    # the quartiles of the logged items' counts, 1 and 12, are 3.75, 6.5 and 9.25
    assert [row["bin"] for row in result["bins"]] == ["0 to 3", "4 to 6", "7 to 9", "10 and more"]
    assert [row["items"] for row in result["bins"]] == [3, 0, 0, 4]
    first, _, _, last = result["bins"]
    # item 0 against 1 and 2: above one and level with the other; the policy has it above both
    assert first["cases"] == 1 and first["ranker"]["mean"] == 0.75 and first["policy"]["mean"] == 1.0
    # item 5 against 3 and 6: above one of them for the ranker, above both for the policy
    assert last["cases"] == 1 and last["ranker"]["mean"] == 0.5 and last["policy"]["mean"] == 1.0
    assert result["bins"][1]["cases"] == 0 and result["bins"][1]["ranker"] is None
    assert "truth" not in first


def test_the_truth_is_asked_of_the_other_items() -> None:
    lists, counts = two_cases()
    utility = np.array([0.0, 1.0, 2.0, 5.0, 6.0, 0.0, 7.0])
    result = order_by_exposure(
        lists,
        counts,
        "times shown",
        utility=lambda items: utility[np.maximum(items, 0)],
        resamples=FEW,
        seed=0,
    )
    first, _, _, last = result["bins"]
    # case 1: of items 1 and 2 the second is better, as the ranker says and the policy does not; case 2 has item 0 alone
    assert first["truth"]["cases"] == 1
    assert (first["truth"]["ranker"]["mean"], first["truth"]["policy"]["mean"]) == (1.0, 0.0)
    # case 1: 4 above 3, level for the ranker, wrong for the policy; case 2: 6 above 3, right and wrong
    assert last["truth"]["cases"] == 2
    assert (last["truth"]["ranker"]["mean"], last["truth"]["policy"]["mean"]) == (0.75, 0.0)


def test_a_list_without_the_logged_item_is_left_out() -> None:
    lists, counts = two_cases()
    result = order_by_exposure(
        lists._replace(targets=np.array([6, 5])), counts, "training interactions", resamples=FEW, seed=0
    )
    assert sum(row["cases"] for row in result["bins"]) == 1 and result["counted"] == "training interactions"
