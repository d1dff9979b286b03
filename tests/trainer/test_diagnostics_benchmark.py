"""The benchmark of what the diagnostics cost compares steps that differ in nothing else."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from adagrpo.trainer import PostTraining

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks import diagnostics


def build(world, task, gate):
    """A task of a class, on a new policy."""
    common = world.post_training(world.policy(), gate=gate)
    arguments = (common.policy, common.catalog, common.reward, common.schedule, common.objective, common.arm)
    return task(*arguments, steps=common.steps, validate=common.validate)


def test_the_plain_step_has_the_loss_of_the_diagnosed_one_and_asks_of_the_rollouts_alone(world):
    plain, full = (build(world, task, "all") for task in (diagnostics.Plain, PostTraining))
    plain.reward.asked, full.reward.asked = [], []
    for step in range(4):
        losses = []
        for task in (plain, full):
            gated, micros, _ = world.draw(task, step)
            losses.append([term for micro in micros for term in task.loss(micro)[0].values()])
        assert len(losses[0]) == 2 and all(torch.equal(*pair) for pair in zip(*losses, strict=True))
        assert plain.spread == full.spread
        for row, rollouts in zip(plain.reward.asked[-1].tolist(), gated.rollouts.items.tolist(), strict=True):
            assert {item for item in row if item >= 0} == {item for item in rollouts if item >= 0}
        asked = [int((task.reward.asked[-1] >= 0).sum()) for task in (plain, full)]
        assert asked[0] < asked[1]


def test_the_rows_of_both_policies_come_out(world, monkeypatch):
    common = world.post_training(world.policy())
    models = SimpleNamespace(
        run=SimpleNamespace(path=lambda *_: None),
        config=SimpleNamespace(objective=common.objective),
        data=SimpleNamespace(device=torch.device("cpu"), catalog=world.catalog),
        policy=lambda _: world.policy(),
        ranker=lambda: world.reward,
        schedule=lambda _: world.schedule(),
    )
    monkeypatch.setattr(diagnostics, "models_of", lambda data, work, kind: models)
    monkeypatch.setattr(diagnostics, "measure", functools.partial(diagnostics.measure, repeats=1))
    monkeypatch.setattr(diagnostics, "STEPS", 1)
    monkeypatch.setattr("benchmarks.compact.STEPS", 1)
    rows = diagnostics.diagnostics_share(Path(), Path())
    assert [row.name for row in rows] == ["diagnostics_share", "diagnostics_share_hybrid"]
    steps = {f"{name}_step_ms" for name in ("plain", "diagnosed", "gated")}
    whole = {"admission_all", "admission_gated", "gated_over_plain", "whole_step_difference"}
    names = ("reward_of_rollouts", "reward_of_all", "negatives", "target_log_probs", "gate", "shuffled_gate")
    for row in rows:
        assert set(row.detail) == steps | whole | {f"{name}_ms" for name in names}
        assert row.met is None and row.spread[0] <= row.value <= row.spread[1] < 1
        assert all(value > 0 for name, value in row.detail.items() if name.endswith("_ms"))
        assert 0 < row.detail["admission_gated"] < row.detail["admission_all"] <= 1


def test_the_share_is_what_was_added_over_the_step_that_has_it(world, monkeypatch):
    milliseconds = {3: [100, 200, 150], 6: [4, 5, 1, 3, 2, 1]}  # of the steps, and of the parts in their order

    def timed(works, **_):
        for work in works:
            work()
        unit = 1e-3 * (diagnostics.STEPS if len(works) == 3 else 1)
        return [[value * unit] for value in milliseconds[len(works)]]

    monkeypatch.setattr(diagnostics, "timed_in_turn", timed)
    monkeypatch.setattr("benchmarks.compact.STEPS", 1)
    actual = diagnostics.measure(functools.partial(build, world), torch.device("cpu"))
    assert actual.values == [pytest.approx((5 - 4 + 1 + 2 + 1) / 200)]
    assert actual.detail["whole_step_difference"] == pytest.approx(0.5)
    assert actual.detail["gated_over_plain"] == pytest.approx(1.5)
