"""Which quantities of a run are drawn."""

from __future__ import annotations

import math

from adagrpo.objective.terms import TERMS
from adagrpo.report.figures import Log, admission_figures, training_signals


def test_the_gradient_norm_of_every_reward_term_is_in_one_chart() -> None:
    logs = [
        Log(f"arm-{term}", [{"step": step, f"grad_norm_{term}": 0.5 + place} for step in (1, 2)])
        for place, term in enumerate(TERMS)
    ]
    (figure,) = training_signals([*logs, Log("nll", [{"step": 1}])])
    assert "Gradient norm of the reward term" in figure.svg
    assert f"by step: {', '.join(log.arm for log in logs)}" in figure.svg


def test_what_the_admitted_held_is_a_share_of_them_and_not_of_steps() -> None:
    """One of 128 admitted, and it holds the item; then 64 admitted, of which none does."""
    held = [(1 / 128, 1.0), (64 / 128, 0.0), (0.0, math.nan)]
    steps = [
        {"step": step, "admission": admitted, "admitted_contains_target": share}
        for step, (admitted, share) in enumerate(held)
    ]
    (figure,) = admission_figures([Log("adagrpo", steps)], {})
    assert "The rollouts of 1.5 % of the admitted held the logged item" in figure.caption
