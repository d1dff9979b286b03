from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from adagrpo.config import ObjectiveConfig
from adagrpo.diagnosis import Lists, Observations, diagnose
from adagrpo.diagnosis.judgement import judge
from adagrpo.diagnosis.orders import target_ranks
from adagrpo.diagnosis.sentences import sentences
from adagrpo.diagnosis.strata import gains

OBJECTIVE = ObjectiveConfig(q_min=0.9)
FEW = 200  # the verdict reads none of it
ObservationsOf = Callable[..., Observations]


@pytest.fixture(scope="module")
def planted(observed: ObservationsOf) -> dict[str, Any]:
    """A ranker that knows the relevance: its own noise is a third of what there is to know."""
    return diagnose(observed(0, 400, 3.0), OBJECTIVE, seed=0, resamples=FEW)


def test_a_planted_good_ranker_is_used(planted: dict[str, Any]) -> None:
    verdict = planted["verdict"]
    assert (verdict["decision"], verdict["tau"], verdict["q_min"]) == ("use", 0.5, 0.9)
    assert verdict["where"][0] == "all cases" and verdict["sentences"][0].startswith(
        "Re-rank with this ranker at serving time; training"
    )


@pytest.mark.parametrize(("knowledge", "permute"), [(0.0, False), (3.0, True)], ids=["random", "permuted targets"])
def test_a_ranker_without_knowledge_is_not_used(observed: ObservationsOf, knowledge: float, permute: bool) -> None:
    for seed in range(2):
        result = diagnose(observed(seed, 300, knowledge, permute_targets=permute), OBJECTIVE, seed=seed, resamples=FEW)
        assert result["verdict"]["decision"] == "do_not_use" and result["verdict"]["where"] == []
        assert result["verdict"]["sentences"][0].startswith("Do not use")


def test_groups_that_are_shuffled_leave_no_gate_and_the_same_verdict(observed: ObservationsOf) -> None:
    observations = observed(0, 400, 3.0)
    blind = observations.sampled._replace(rewards=observations.sampled.shuffled_rewards)
    changed = replace(observations, sampled=blind)
    verdict = diagnose(changed, OBJECTIVE, seed=0, resamples=FEW)["verdict"]
    assert (verdict["decision"], verdict["tau"]) == ("use", None)
    assert "the gate admits no more groups than it would with shuffled rewards" in " ".join(verdict["gate_sentences"])
    assert "gate" not in " ".join(verdict["sentences"])


def test_truth_is_said_beside_and_decides_nothing(observed: ObservationsOf, planted: dict[str, Any]) -> None:
    """The same good ranker, in a world whose true utility is what it likes, and the opposite."""
    observations = observed(0, 400, 3.0)
    groups, lists = observations.sampled, observations.lists
    found = groups.rollouts.items.numpy()
    liked = np.zeros((len(found), 1 + max(found.max(), lists.items.max())))  # (N, V) where the ranker was asked
    np.put_along_axis(liked, lists.items, lists.rewards, axis=1)
    rows, places = np.nonzero(found >= 0)
    liked[rows, found[rows, places]] = groups.rewards.rollouts.double().numpy()[rows, places]
    for sign in (1.0, -1.0):
        output = replace(
            observations,
            utility=lambda items, sign=sign: sign * np.take_along_axis(liked, np.maximum(items, 0), axis=1),
        )
        result = diagnose(output, OBJECTIVE, seed=0, resamples=FEW)
        assert result["verdict"] == planted["verdict"]


def test_other_seeds_move_the_verdict_by_little_of_its_own_error(observed: ObservationsOf) -> None:
    """A ranker that knows something, so that the halves do not agree on the weight."""
    observations = observed(3, 400, 0.5)
    verdicts = [diagnose(observations, OBJECTIVE, seed=seed, resamples=10)["verdict"] for seed in range(4)]
    adds = [verdict["evidence"]["adds"] for verdict in verdicts]
    assert len({entry["mean"] for entry in adds}) > 1  # really other halvings
    error = (adds[0]["high"] - adds[0]["low"]) / (2 * 1.96)
    assert (
        max(abs(entry["mean"] - adds[0]["mean"]) for entry in adds) < 0.1 * error
    )  # four of them differ by a few standard errors of the draws
    assert all(verdict["draws"]["halvings"] == 1000 for verdict in verdicts)
    assert all(verdict["draws"]["share_of_the_error"] < 0.03 for verdict in verdicts)
    assert len({json.dumps(verdict["evidence"]["leads"]) for verdict in verdicts}) == 1  # nothing is drawn


def test_a_lead_on_what_was_shown_most_is_no_ground_to_train(observed: ObservationsOf) -> None:
    """The ranker knows what is wanted of the items that were shown most, and nothing of the others."""
    observations = observed(0, 600, 3.0)
    shown = np.where(np.arange(64) % 4 == 0, 100_000, 10)
    lists = observations.lists
    known = shown[lists.targets] > 10
    noise = np.random.default_rng(0).normal(size=lists.rewards.shape)
    rewards = np.where(known[:, None], lists.rewards, noise)
    blind = replace(observations, lists=lists._replace(rewards=rewards), exposures=shown)
    verdict = diagnose(blind, OBJECTIVE, seed=0, resamples=FEW)["verdict"]
    evidence = verdict["evidence"]
    assert verdict["counted"] == "times shown" and verdict["decision"] != "use"
    assert evidence["leads"]["mean"] < evidence["leads_as_logged"]["mean"]
    # nearly all weight is on the others, whose order by the ranker is a random one
    others = replace(observations, lists=Lists(*(part[~known] for part in blind.lists)))
    alone, policy = (
        gains(target_ranks(others.lists, k))["ndcg@10"] for k in (others.lists.rewards, others.lists.log_probs)
    )
    assert evidence["leads"]["mean"] == pytest.approx((alone - policy).mean(), abs=0.001)


def decision(observations: Observations, seed: int) -> str:
    """The verdict on observations without their groups, which say nothing of it."""
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
    actual = [decision(observed(5000 + seed, 240, 0.0), seed) for seed in range(300)]
    assert 300 - actual.count("do_not_use") <= stats.binom.ppf(0.99, 300, 0.05)


def test_the_whole_is_json_and_repeats(planted: dict[str, Any], observed: ObservationsOf) -> None:
    text = json.dumps(planted, allow_nan=False)
    assert json.dumps(diagnose(observed(0, 400, 3.0), OBJECTIVE, seed=0, resamples=FEW)) == text


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


def test_the_gates_shares_add_up(planted: dict[str, Any]) -> None:
    for kind in ("sample", "beam"):
        gate = planted["gate"][kind]
        causes = ("admission", "rejected_easy", "rejected_undiscriminated", "rejected_degenerate")
        assert sum(gate[name] for name in causes) == pytest.approx(1.0, abs=1e-6)
        assert gate["excess"]["mean"] == pytest.approx(gate["admission"] - gate["shuffled_admission"])


def test_the_grid_holds_the_configured_thresholds_and_narrows(planted: dict[str, Any]) -> None:
    grid = {(row["tau"], row["q_min"]): row["admitted"] for row in planted["grid"]}
    assert (OBJECTIVE.miss_min, OBJECTIVE.q_min) in grid and len(grid) == 16
    assert planted["gate"]["sample"]["admission"] == pytest.approx(grid[OBJECTIVE.miss_min, OBJECTIVE.q_min] / 400)
    for (tau, q_min), admitted in grid.items():
        assert all(admitted >= more for (t, q), more in grid.items() if t >= tau and q >= q_min)


def test_optional_strata_appear_where_they_were_measured(planted: dict[str, Any], observed: ObservationsOf) -> None:
    assert "exposure" not in planted
    observations = observed(0, 200, 3.0)
    more = replace(observations, exposures=observations.training_counts * 10)
    result = diagnose(more, OBJECTIVE, seed=0, resamples=FEW)
    assert sum(row["cases"] for row in result["exposure"]) == 200


def test_a_gain_in_cells_alone_is_said_as_such(planted: dict[str, Any]) -> None:
    verdict = planted["verdict"]
    adds, leads = ({**verdict["evidence"][name]} for name in ("adds", "leads"))
    changed = {"decision": "rerank_only", "strength": "some", "where": ["history length low"]}
    evidence = {**verdict["evidence"], "adds": adds | {"strength": "none"}, "leads": leads | {"strength": "against"}}
    text = " ".join(sentences({**planted, "verdict": {**verdict, **changed, "evidence": evidence}}))
    assert "significant in some segments, and not over all cases. Do not train on it" in text
    assert "The gain is significant in: history length low." in text
    nothing = adds | {"mean": -1e-7, "low": -2e-7, "high": 1e-7}
    text = " ".join(sentences({**planted, "verdict": {**verdict, "evidence": {**evidence, "adds": nothing}}}))
    assert "NDCG@10 changes by +0.0000 (+0.0000 to +0.0000)" in text


def test_a_decision_that_could_not_be_reached_is_said_as_such(observed: ObservationsOf) -> None:
    verdict = diagnose(observed(0, 240, 0.2), OBJECTIVE, seed=0, resamples=FEW)["verdict"]
    assert (verdict["decision"], verdict["strength"], verdict["reached"]) == ("do_not_use", "none", False)
    assert verdict["sentences"][1].startswith("These cases are too few for a decision")
    ends = verdict["evidence"]["adds"]
    assert f"is between {ends['low']:+.4f} and {ends['high']:+.4f}, with 0 inside" in verdict["sentences"][1]
