"""The short version of `python -m benchmarks.off_policy`: estimates against the truth of the simulated marketplace."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.off_policy import World, open_bandit, scores

OPEN_BANDIT = Path(__file__).parents[3] / "shared" / "data" / "open-bandit" / "logs.parquet"


@pytest.mark.slow  # a hundred logs
def test_estimates_agree_with_the_truth_where_a_log_is_not_refused() -> None:
    near = scores(World.of_marketplace(error=0.5), 40, 1000, lists=20_000)
    for name, score in near.items():
        assert abs(score.bias) < 4 * score.error_of_bias + 0.004, name  # the truth is of 20,000 lists
        assert score.coverage > 0.85 and score.refused < 0.2, name
    assert near["list, cascade, self-normalised"].rmse < near["list, IPS"].rmse
    far = scores(World.of_marketplace(error=2.0, sharpness=2.0), 10, 1000, lists=1000)
    assert all(score.refused > 0.8 for score in far.values())


@pytest.mark.shared_data
@pytest.mark.skipif(not OPEN_BANDIT.exists(), reason="needs the research data")
def test_the_log_of_thompson_sampling_agrees_with_that_of_the_uniform_policy() -> None:
    rows = list(open_bandit(OPEN_BANDIT))
    assert [campaign for campaign, *_ in rows] == ["all", "men"]
    for _, had, one, other in rows:
        for estimate in (one, other):
            assert estimate.low < had.high and had.low < estimate.high
            assert 300 < estimate.effective_size < 1000
