from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from adagrpo.diagnosis import Lists, Observations, diagnose
from adagrpo.diagnosis.assessment import order_by_exposure, weight_curve
from adagrpo.diagnosis.orders import cross_fitted_mix, gains, target_ranks
from adagrpo.diagnosis.verdict import judge, sentences
from adagrpo.rewards.reranking import WEIGHTS

FEW = 200  # the verdict reads none of it
ObservationsOf = Callable[..., Observations]


@pytest.fixture(scope="module")
def planted(observed: ObservationsOf) -> dict[str, Any]:
    """A ranker that knows the relevance: its own noise is a third of what there is to know."""
    return diagnose(observed(0, 400, 3.0), seed=0, resamples=FEW)


def test_a_planted_good_ranker_is_used(planted: dict[str, Any]) -> None:
    verdict = planted["verdict"]
    assert (verdict["decision"], verdict["reached"], verdict["inverted"]) == ("use", True, False)
    assert verdict["where"][0] == "all cases"
    assert verdict["sentences"][:2] == [
        "Re-ranking the policy's list by this reward helps.",
        "The evidence for it is strong.",
    ]
    assert "`adagrpo decide --train`" in verdict["sentences"][-1] and "serve" not in " ".join(verdict["sentences"])


@pytest.mark.parametrize(("knowledge", "permute"), [(0.0, False), (3.0, True)], ids=["random", "permuted targets"])
def test_a_ranker_without_knowledge_is_not_used(observed: ObservationsOf, knowledge: float, permute: bool) -> None:
    for seed in range(2):
        result = diagnose(observed(seed, 300, knowledge, permute_targets=permute), seed=seed, resamples=FEW)
        assert result["verdict"]["decision"] == "do_not_use" and result["verdict"]["where"] == []
        assert result["verdict"]["sentences"][0].startswith("Do not re-rank")


def test_truth_is_said_beside_and_decides_nothing(observed: ObservationsOf, planted: dict[str, Any]) -> None:
    """The same good ranker, in a world whose true utility is what it likes, and the opposite."""
    observations = observed(0, 400, 3.0)
    lists = observations.lists
    liked = np.zeros((len(lists.items), 64))  # (N, V) where the ranker was asked
    np.put_along_axis(liked, lists.items, lists.rewards, axis=1)
    for sign in (1.0, -1.0):
        output = replace(
            observations,
            utility=lambda items, sign=sign: sign * np.take_along_axis(liked, np.maximum(items, 0), axis=1),
        )
        result = diagnose(output, seed=0, resamples=FEW)
        assert result["verdict"] == planted["verdict"]


def test_other_seeds_move_the_verdict_by_little_of_its_own_error(observed: ObservationsOf) -> None:
    """A ranker that knows something, so that the halves do not agree on the weight."""
    observations = observed(3, 400, 0.5)
    verdicts = [diagnose(observations, seed=seed, resamples=10)["verdict"] for seed in range(4)]
    adds = [verdict["evidence"]["adds"] for verdict in verdicts]
    assert len({entry["mean"] for entry in adds}) > 1  # really other halvings
    error = (adds[0]["high"] - adds[0]["low"]) / (2 * 1.96)
    assert (
        max(abs(entry["mean"] - adds[0]["mean"]) for entry in adds) < 0.1 * error
    )  # four of them differ by a few standard errors of the draws
    assert all(verdict["draws"]["halvings"] == 1000 for verdict in verdicts)
    assert all(verdict["draws"]["share_of_the_error"] < 0.03 for verdict in verdicts)
    assert len({json.dumps(verdict["evidence"]["leads"]) for verdict in verdicts}) == 1  # nothing is drawn


def test_what_was_shown_most_weighs_least_in_the_weighted_lead(observed: ObservationsOf) -> None:
    """The ranker knows what is wanted of the items that were shown most, and nothing of the others."""
    observations = observed(0, 600, 3.0)
    shown = np.where(np.arange(64) % 4 == 0, 100_000, 10)
    lists = observations.lists
    known = shown[lists.targets] > 10
    noise = np.random.default_rng(0).normal(size=lists.rewards.shape)
    rewards = np.where(known[:, None], lists.rewards, noise)
    blind = replace(observations, lists=lists._replace(rewards=rewards), exposures=shown)
    verdict = diagnose(blind, seed=0, resamples=FEW)["verdict"]
    evidence = verdict["evidence"]
    assert verdict["counted"] == "times shown"
    assert evidence["leads"]["mean"] < evidence["leads_as_logged"]["mean"]
    # nearly all weight is on the others, whose order by the ranker is a random one
    others = replace(observations, lists=Lists(*(part[~known] for part in blind.lists)))
    alone, policy = (
        gains(target_ranks(others.lists, k))["ndcg@10"] for k in (others.lists.rewards, others.lists.log_probs)
    )
    assert evidence["leads"]["mean"] == pytest.approx((alone - policy).mean(), abs=0.001)


def decision(observations: Observations, seed: int) -> str:
    shown = observations.training_counts[observations.lists.targets]
    judged = judge(observations.lists, observations.history_lengths, shown, seed=seed)
    assert len(judged.cells) == 16
    return judged.verdict.decision


def test_false_positives_are_as_rare_as_the_level_says(observed: ObservationsOf) -> None:
    """Of a ranker that knows, whose targets are permuted; one that knows nothing is below, over more seeds."""
    actual = [decision(observed(1000 + seed, 240, 3.0, permute_targets=True), seed) for seed in range(25)]
    assert 25 - actual.count("do_not_use") <= stats.binom.ppf(0.99, 25, 0.05)


@pytest.mark.slow
def test_false_positives_over_many_seeds(observed: ObservationsOf) -> None:
    actual = [decision(observed(5000 + seed, 240, 0.0), seed) for seed in range(120)]
    assert 120 - actual.count("do_not_use") <= stats.binom.ppf(0.99, 120, 0.05)


def test_the_whole_is_json_and_repeats(planted: dict[str, Any], observed: ObservationsOf) -> None:
    text = json.dumps(planted, allow_nan=False)
    assert json.dumps(diagnose(observed(0, 400, 3.0), seed=0, resamples=FEW)) == text


def test_the_orders_are_those_of_the_lists(planted: dict[str, Any], observed: ObservationsOf) -> None:
    lists = observed(0, 400, 3.0).lists
    for name, keys in (("policy", lists.log_probs), ("ranker", lists.rewards)):
        ranks = target_ranks(lists, keys)
        assert planted["orders"][name]["hr@10"] == pytest.approx(((ranks >= 1) & (ranks <= 10)).mean())
        assert planted["all"]["orders"][name]["hr@10"] == planted["orders"][name]["hr@10"]
    difference = planted["orders"]["mix"]["ndcg@10"] - planted["orders"]["policy"]["ndcg@10"]
    assert planted["all"]["minus_policy"]["mix"]["ndcg@10"]["mean"] == pytest.approx(difference)


def test_a_shuffled_ranker_hits_as_often_as_ten_of_thirty(planted: dict[str, Any]) -> None:
    row = planted["all"]
    expected = row["in_beam"] * 10 / 30
    assert row["orders"]["shuffled ranker"]["hr@10"] == pytest.approx(expected, abs=0.03)  # 400 cases, 5 draws


def test_optional_strata_appear_where_they_were_measured(planted: dict[str, Any], observed: ObservationsOf) -> None:
    assert "exposure" not in planted
    observations = observed(0, 200, 3.0)
    more = replace(observations, exposures=observations.training_counts * 10)
    result = diagnose(more, seed=0, resamples=FEW)
    assert sum(row["cases"] for row in result["exposure"]) == 200


def beams(below: list[int]) -> Observations:
    """Lists of eleven items whose logged one is the policy's second; so many of the other ten are below it."""
    items = np.tile(np.arange(11), (len(below), 1))
    rewards = np.where(np.arange(11) - (np.arange(11) > 1) < np.array(below)[:, None], -1.0, 1.0)
    rewards[:, 1] = 0.0
    lists = Lists(items, np.tile(-np.arange(11.0), (len(below), 1)), rewards, np.ones(len(below), dtype=np.int64))
    return Observations(lists, np.arange(len(below)) % 7, np.ones(11, dtype=np.int64), np.ones(len(below)))


def test_an_order_below_chance_is_inverted_by_hand() -> None:
    """30 of 40 logged items are below all others, 10 above one of ten: -.5 and -.4, so -.475 on average.

    The deviation is the root of .1² · .75 · .25 · 40/39, .043853, and the error that over the root of 40, .0069338.
    """
    few = beams([0] * 30 + [1] * 10)
    judged = judge(few.lists, few.history_lengths, np.ones(40, dtype=np.int64), seed=0)
    orders = judged.evidence["orders"]
    assert orders["mean"] == pytest.approx(-0.475) and orders["strength"] == "against"
    assert (orders["high"] - orders["low"]) / 2 == pytest.approx(1.96 * 0.0069338, rel=1e-4)
    assert judged.verdict.inverted and judged.reached and judged.verdict.decision == "do_not_use"
    # lists that lack the logged item, or any other, have no part in it; ties count one half
    other = few.lists._replace(targets=np.where(np.arange(40) < 10, 99, 1))
    tied = other._replace(rewards=np.zeros_like(other.rewards))
    assert judge(other, few.history_lengths, np.ones(40), seed=0).evidence["orders"]["mean"] == pytest.approx(-14 / 30)
    assert judge(tied, few.history_lengths, np.ones(40), seed=0).evidence["orders"]["mean"] == 0.0
    said = diagnose(few, seed=0, resamples=10)["verdict"]["sentences"]
    assert said[1] == (
        "Re-ranking by it gains at most 0.0000 NDCG@10. Its own order is significantly worse than chance within the"
        " policy's lists: is its sign flipped?"
    )
    assert "the reward puts it above 2.5 % (1.1 to 3.9) of the others" in " ".join(said)
    assert not judge(beams([9] * 30 + [10] * 10).lists, few.history_lengths, np.ones(40), seed=0).verdict.inverted


@pytest.mark.parametrize(
    ("high", "alone", "reached", "told"),
    [
        (0.0019, "none", True, "Re-ranking by it gains at most 0.0019 NDCG@10."),
        (
            0.0300,
            "against",
            True,
            "Re-ranking by it gains at most 0.0300 NDCG@10; its own order is significantly worse than the policy's, by"
            " -0.0806 (-0.0900 to -0.0710).",
        ),
        (
            0.0021,
            "none",
            False,
            "These cases are too few for a decision: by re-ranking, NDCG@10 changes by +0.0001 (-0.0010 to +0.0021),"
            " which holds a gain of 1 % of the policy's 0.2000; you need more validation cases.",
        ),
    ],
)
def test_why_nothing_is_advised(planted: dict[str, Any], high: float, alone: str, reached: bool, told: str) -> None:
    verdict = planted["verdict"]
    evidence = {
        **verdict["evidence"],
        "adds": {"mean": 0.0001, "low": -0.001, "high": high, "strength": "none"},
        "leads_as_logged": {"mean": -0.0806, "low": -0.09, "high": -0.071, "strength": alone},
    }
    said = {**verdict, "decision": "do_not_use", "reached": reached, "where": [], "evidence": evidence}
    orders = planted["orders"] | {"policy": planted["orders"]["policy"] | {"ndcg@10": 0.2}}
    assert sentences({**planted, "verdict": said, "orders": orders})[1] == told


def test_too_few_cases_is_said_where_a_gain_worth_having_is_possible(observed: ObservationsOf) -> None:
    """Of 240 cases with a weak reward, of a constant one, and of noise, which orders worse than the policy."""
    weak, noise = observed(0, 240, 0.2), observed(1, 240, 0.0)
    constant = replace(weak, lists=weak.lists._replace(rewards=np.zeros_like(weak.lists.rewards)))
    results = [diagnose(one, seed=0, resamples=FEW) for one in (weak, constant, noise)]
    for result, reached in zip(results, (False, True, True), strict=True):
        verdict = result["verdict"]
        assert (verdict["decision"], verdict["reached"], verdict["inverted"]) == ("do_not_use", reached, False)
    assert results[0]["verdict"]["evidence"]["adds"]["high"] > 0.01 * results[0]["orders"]["policy"]["ndcg@10"]
    assert [result["verdict"]["sentences"][1].partition(" by ")[0] for result in results] == [
        "These cases are too few for a decision:",
        "Re-ranking",
        "Re-ranking",
    ]
    assert "significantly worse than the policy's" in results[2]["verdict"]["sentences"][1]


def test_a_gain_in_cells_alone_is_said_as_such(planted: dict[str, Any]) -> None:
    verdict = planted["verdict"]
    adds = verdict["evidence"]["adds"]
    nothing = adds | {"mean": -1e-7, "low": -2e-7, "high": 1e-7, "strength": "none"}
    evidence = {**verdict["evidence"], "adds": nothing}
    cell = {"strength": "some", "where": ["history length low"]}
    text = " ".join(sentences({**planted, "verdict": {**verdict, **cell, "evidence": evidence}}))
    assert "The gain is significant in some segments, and not over all cases." in text
    assert "The gain is significant in: history length low." in text
    assert "NDCG@10 changes by +0.0000 (+0.0000 to +0.0000)" in text


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
