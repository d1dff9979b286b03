"""Strata of re-ranking: places, strata, fifths and rows by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from adagrpo.diagnosis.strata import fifths_of, gains, places, rows_of, strata_of
from adagrpo.groups.score import GroupRewards, ScoredGroups
from adagrpo.objective import GATES, Evidence
from adagrpo.types import Histories, Rollouts

NAN = float("nan")


def test_places_by_hand() -> None:
    groups: Any = SimpleNamespace(
        rollouts=SimpleNamespace(items=torch.tensor([[4, 5, -1, 6], [4, 5, 7, 6], [4, 5, 7, 6]])),
        targets=torch.tensor([6, 9, 4]),
    )
    scores = torch.tensor([[3.0, 1.0, NAN, 2.0], [1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 0.0, 3.0]])
    assert places(groups, scores).tolist() == [1.0, float("inf"), 1.5]


def test_fifths_of_some_cases_have_their_own_edges() -> None:
    log_prob = np.array([-1.0, -2.0, -3.0, -4.0, -5.0, -90.0, -91.0])
    masks = fifths_of(log_prob, np.array([True] * 5 + [False] * 2))
    assert [int(mask[:5].argmax()) for mask in masks.values()] == [0, 1, 2, 3, 4]
    assert [int(mask[:5].sum()) for mask in masks.values()] == [1] * 5


def test_no_case_is_in_a_fifth_of_none() -> None:
    assert (
        sum(int((mask & np.zeros(2, bool)).sum()) for mask in fifths_of(np.zeros(2), np.zeros(2, bool)).values()) == 0
    )


def evidence_of(above_policy: list[float], above_reward: list[float], negatives: list[list[float]]) -> Evidence:
    count = len(above_policy)
    tensors = [torch.tensor(values) for values in (above_policy, above_reward, negatives)]
    return Evidence(
        *tensors, torch.ones(count), torch.ones(count), torch.zeros(count, dtype=torch.bool), torch.ones(count)
    )


@pytest.mark.parametrize(
    ("options", "admitted"),
    [
        ({"tau": 0.5, "rho": 0.3}, [True, False, False, False]),
        ({"tau": 0.5, "rho": 0.3, "tau_reward": 1.0}, [True, True, False, False]),
        ({"tau": 0.0, "rho": 0.0, "tau_reward": 1.0}, [True, True, True, True]),
        ({"tau": 0.5, "rho": 0.3, "rho_from": "bottom"}, [False, False, False, False]),
    ],
)
def test_strata_admit_what_the_gate_admits(options: dict[str, Any], admitted: list[bool]) -> None:
    evidence = evidence_of([0.9, 0.9, 0.9, 0.1], [0.1, 0.9, 0.1, 0.1], [[0.8, NAN], [0.8, 0.9], [0.1, 0.9], [0.8, 0.9]])
    strata = strata_of(evidence, options)
    assert strata["admitted"].tolist() == admitted
    gate = GATES["adagrpo"]
    defaults = {name: default for name, (_, default) in gate.options.items()}
    assert gate.decide(evidence._asdict(), {**defaults, **options}).admitted.tolist() == admitted
    flat = evidence._replace(degenerate=torch.ones(4, dtype=torch.bool))
    assert not strata_of(flat, options)["admitted"].any()


def test_rows_by_hand() -> None:
    """Of twelve items the policy puts the logged one at place 11, the reward first, the shuffled reward tenth."""
    items = torch.arange(12).repeat(2, 1)
    targets = torch.tensor([11, 99])
    log_probs = -torch.arange(12.0).repeat(2, 1).unsqueeze(2)
    shuffled = torch.tensor([9.5 if item == 11 else float(20 - item) for item in range(12)]).repeat(2, 1)
    shuffled[:, 9:11] = 1.0  # below the logged item's 9.5, so that nine are above
    rollouts = Rollouts(torch.zeros(2, 12, 1, dtype=torch.int64), items, log_probs)
    nothing = torch.empty(2, 0)
    groups = ScoredGroups(
        Histories(torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, dtype=torch.int64)),
        targets,
        rollouts,
        rollouts,
        torch.zeros(2, 1, dtype=torch.int64),
        torch.tensor([[-1.0], [-2.0]]),
        nothing.long(),
        GroupRewards(torch.zeros(2), items.float(), nothing, 0),
        GroupRewards(torch.zeros(2), shuffled, nothing, 0),
        0.0,
    )
    evidence = evidence_of([0.9, 0.9], [0.0, 0.9], [[0.9], [0.9]])
    among = np.ones(2, bool)
    rows = {row["stratum"]: row for row in rows_of(groups, evidence, evidence, {"tau": 0.5, "rho": 0.3}, among)}
    whole, admitted = rows["all"], rows["admitted"]
    assert (whole["cases"], whole["policy_hr@10"], whole["reward_hr@10"]) == (2, 0.0, 0.5)
    assert whole["gain_hr@10"] == 0.5 and whole["gain_hr@10_half"] == pytest.approx(1.96 * 0.5)
    assert whole["shuffled_gain_ndcg@10"] == pytest.approx(0.5 / np.log2(11))
    assert (admitted["cases"], admitted["gain_ndcg@10"], admitted["gain_hr@10_half"]) == (1, 1.0, None)
    assert rows["not hard"]["cases"] == 0 and rows["not hard"]["gain_hr@10"] is None
    assert sum(rows[f"in the beam, fifth {fifth}"]["cases"] for fifth in range(1, 6)) == 1
    few = rows_of(groups, evidence, evidence, {"tau": 0.5, "rho": 0.3}, among, least=3)
    assert all(row["gain_hr@10_half"] is None for row in few)


def test_gains_by_hand() -> None:
    assert gains(torch.tensor([2.0, 10.0]))["ndcg@10"].tolist() == [0.5, 0.0]
