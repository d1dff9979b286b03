"""Which quantities of a run are drawn."""

from __future__ import annotations

import math

import pytest

from adagrpo.objective.terms import TERMS
from adagrpo.report.figures import Log, admission_figures, of_this_reward, training_signals


def test_the_gradient_norm_of_every_reward_term_is_in_one_chart() -> None:
    logs = [
        Log(f"arm-{term}", [{"step": step, f"grad_norm_{term}": 0.5 + place} for step in (1, 2)])
        for place, term in enumerate(TERMS)
    ]
    (figure,) = training_signals([*logs, Log("nll", [{"step": 1}])])
    assert "Gradient norm of the reward term" in figure.svg
    assert f"by step: {', '.join(log.arm for log in logs)}" in figure.svg


def test_what_was_measured_once_is_no_chart() -> None:
    steps = [
        {"step": 1, "nll": 2.0, "kl": 0.1, "contains_target": 0.2},
        {"step": 2, "nll": 1.0, "contains_target": 0.3},
    ]
    drawn = [figure.svg for figure in training_signals([Log("mixture", steps)])]
    assert len(drawn) == 2 and "Groups that hold the logged item" in drawn[0] and "NLL" in drawn[1]


def test_what_the_admitted_held_is_a_share_of_them_and_not_of_steps() -> None:
    """One of 128 admitted, and it holds the item; then 64 admitted, of which none does."""
    held = [(1 / 128, 1.0), (64 / 128, 0.0), (0.0, math.nan)]
    steps = [
        {"step": step, "admission": admitted, "admitted_contains_target": share}
        for step, (admitted, share) in enumerate(held)
    ]
    (figure,) = admission_figures([Log("adagrpo", steps)], {})
    assert "The rollouts of 1.5 % of the admitted held the logged item" in figure.caption


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
