"""Thresholds by admission, against groups that are counted by hand."""

from __future__ import annotations

import pytest
import torch

from adagrpo.errors import UserError
from adagrpo.objective import Admission, Evidence, admission_by_test, admission_grid, choose_thresholds


def evidence(policy: list[float], reward: list[float], negative: list[float]) -> Evidence:
    count = len(policy)
    nothing, sound = torch.zeros(count), torch.zeros(count, dtype=torch.bool)
    columns = torch.tensor(policy), torch.tensor(reward), torch.tensor(negative).unsqueeze(1)
    return Evidence(*columns, nothing, nothing, sound, nothing)


OWN = evidence([0.9, 0.6, 0.6, 0.1], [0.1, 0.4, 0.1, 0.1], [0.9, 0.9, 0.2, 0.9])
SHUFFLED = evidence([0.9, 0.6, 0.6, 0.1], [0.4, 0.9, 0.1, 0.9], [0.2, 0.2, 0.2, 0.9])


def test_every_pair_is_judged() -> None:
    grid = admission_grid(OWN, SHUFFLED, tau=(0.3, 0.5), rho=(0.1, 0.5))
    # tau 0.3 admits the first and, at rho 0.1, the third; tau 0.5 the second too
    assert grid == [
        Admission(0.3, 0.1, 0.5, 0.25),
        Admission(0.3, 0.5, 0.25, 0.0),
        Admission(0.5, 0.1, 0.75, 0.5),
        Admission(0.5, 0.5, 0.5, 0.0),
    ]
    assert admission_grid(OWN, SHUFFLED, tau=(0.3,), rho=(0.1,), tau_reward=1.0)[0].admitted == 0.75


def test_each_test_alone() -> None:
    tests = admission_by_test(OWN, SHUFFLED, tau=0.5, rho=0.5)
    assert tests == {"hard": (0.75, 0.75), "known": (1.0, 0.5), "suppressed": (0.75, 0.25)}


def test_of_pairs_near_the_share_the_most_selective_is_chosen() -> None:
    grid = [Admission(0.3, 0.1, 0.12, 0.12), Admission(0.4, 0.2, 0.1, 0.02), Admission(0.5, 0.2, 0.14, 0.0)]
    assert choose_thresholds(grid, 0.12, 1000) == grid[2]
    assert choose_thresholds(grid[:2], 0.12, 1000) == grid[1]
    assert choose_thresholds([grid[0], grid[0]._replace(tau=0.2)], 0.12, 1000).tau == 0.2


def test_a_share_that_no_pair_reaches_is_refused_with_the_nearest() -> None:
    grid = [Admission(0.3, 0.1, 0.02, 0.01), Admission(0.4, 0.2, 0.05, 0.02)]
    with pytest.raises(
        UserError, match=r"admit 0\.12: no pair .* 1,000 samples .* tau 0\.4 and rho 0\.2, admits 0\.05"
    ):
        choose_thresholds(grid, 0.12, 1000)
