"""Which quantities of a run are drawn."""

from __future__ import annotations

from adagrpo.objective.terms import TERMS
from adagrpo.report.figures import Log, training_signals


def test_the_gradient_norm_of_every_reward_term_is_in_one_chart() -> None:
    logs = [
        Log(f"arm-{term}", place, [{"step": step, f"grad_norm_{term}": 0.5 + place} for step in (1, 2)])
        for place, term in enumerate(TERMS)
    ]
    (figure,) = training_signals([*logs, Log("nll", 9, [{"step": 1}])])
    assert "Gradient norm of the reward term" in figure.svg
    assert f"by step: {', '.join(log.arm for log in logs)}" in figure.svg
