"""The study of the paper's gate: places and strata by hand, and the rule that chooses thresholds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adagrpo.objective import Evidence
from research.paper_gate.admission import admission_rows, chosen_thresholds
from research.paper_gate.strata import places, strata_of

NAN = float("nan")


def test_places_by_hand() -> None:
    groups: Any = SimpleNamespace(
        rollouts=SimpleNamespace(items=torch.tensor([[4, 5, -1, 6], [4, 5, 7, 6], [4, 5, 7, 6]])),
        targets=torch.tensor([6, 9, 4]),
    )
    scores = torch.tensor([[3.0, 1.0, NAN, 2.0], [1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 0.0, 3.0]])
    assert places(groups, scores).tolist() == [1.0, float("inf"), 1.5]


@pytest.fixture
def evidence() -> Evidence:
    return Evidence(
        above_policy=torch.tensor([0.9, 0.9, 0.9, 0.1]),
        above_reward=torch.tensor([0.1, 0.9, 0.1, 0.1]),
        negatives_above=torch.tensor([[0.8, NAN], [0.8, 0.9], [0.1, 0.9], [0.8, 0.9]]),
        miss=torch.ones(4),
        q=torch.ones(4),
        degenerate=torch.zeros(4, dtype=torch.bool),
    )


def test_strata_and_admission_follow_the_gate(evidence: Evidence) -> None:
    strata = strata_of(evidence, {"tau": 0.5, "rho": 0.3})
    assert strata["admitted"].tolist() == [True, False, False, False]
    assert strata["hard, suppressed"].tolist() == [True, True, False, False]
    (row,) = admission_rows(evidence, evidence, {"tau": [0.5], "rho": [0.3]})
    assert (row["gate"], row["hard_alone"], row["known_alone"], row["suppressed_alone"]) == (0.25, 0.75, 0.75, 0.75)
    assert (row["without_hard"], row["without_known"], row["without_suppressed"]) == (0.5, 0.5, 0.5)


def test_thresholds_outside_the_range_are_the_nearest_to_its_middle() -> None:
    rows = [{"tau": 0.2, "rho": rho, "gate": gate, "gate_shuffled": 0.1} for rho, gate in ((0.2, 0.4), (0.5, 0.02))]
    assert chosen_thresholds(rows, {"admission": [0.05, 0.15]}) == {"tau": 0.2, "rho": 0.5}
