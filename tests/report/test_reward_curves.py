"""A mean reward that was measured with another reward stays out of the learning curves."""

from __future__ import annotations

import pytest

from adagrpo.report.figures import Log
from adagrpo.report.reward_curves import of_this_reward


def log(arm: str, *rewards: float | None) -> Log:
    rows = [{"step": step, "hr@10": 0.1, "mean_reward@10": value} for step, value in enumerate(rewards)]
    return Log(arm, validation=rows)


STAGES = {"stages": {"sft": {}, "nll": {"objective": "nll"}, "mixture": {"objective": "mixture"}}}


def test_continued_nll_that_measured_another_reward_keeps_its_other_metrics() -> None:
    logs = [log("sft", 7.0), log("nll", -0.45, -0.4), log("mixture", -0.72, -0.7)]
    kept, elsewhere = of_this_reward(logs, STAGES)
    assert elsewhere == ["nll"]
    assert [row.get("mean_reward@10") for row in kept[1].validation] == [None, None]
    assert [row["hr@10"] for row in kept[1].validation] == [0.1, 0.1]
    assert kept[0] is logs[0] and kept[2] is logs[2]


@pytest.mark.parametrize("logs", [[log("nll", -0.72, -0.4), log("mixture", -0.7204, -0.7)], [log("nll", 0.3)], [],
                                  [log("nll", None), log("mixture", 0.5)]])  # fmt: skip
def test_all_else_stays(logs: list[Log]) -> None:
    assert of_this_reward(logs, STAGES) == (logs, [])
