"""NaN and infinity injected into rewards, logits and gradients: counted, skipped, and the end after three in a row."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adagrpo.policies.compact import CompactPolicy
from adagrpo.trainer import Diverged, fit

PARAMETERS = 44  # of the policy, see `test_every_parameter_is_a_place`
STEPS, BAD = 3, 1  # the step that goes wrong is neither the first nor the last
VALUES = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class Injected:
    """A task, and its policy, in which something goes wrong at chosen steps."""

    def __init__(self, task: Any, steps: tuple[int, ...]) -> None:
        self.task, self.steps, self.now = task, steps, -1
        self.begun: list[int] = []
        begin = task.begin

        def watched(step: int) -> Any:
            self.now = step
            self.begun.append(step)
            return begin(step)

        task.begin = watched

    def replace(self, owner: Any, name: str, spoil: Callable[[Tensor], Tensor]) -> None:
        """Spoil what a method returns, in the chosen steps alone."""
        method = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Tensor:
            values = method(*args, **kwargs)
            return spoil(values) if self.now in self.steps else values

        setattr(owner, name, wrapper)

    def gradient(self, parameter: Tensor, value: float) -> None:
        """Spoil one number of a parameter's gradient."""

        def hook(gradient: Tensor) -> Tensor:
            if self.now not in self.steps:
                return gradient
            spoiled = gradient.clone()
            spoiled.view(-1)[-1] = value
            return spoiled

        parameter.register_hook(hook)


def one(value: float, place: int | str = 0) -> Callable[[Tensor], Tensor]:
    """Put a value into one place of a tensor, or everywhere."""

    def spoil(values: Tensor) -> Tensor:
        if place == "all":
            return values * 0 + value
        spoiled = values.clone()
        spoiled.view(-1)[place] = value
        return spoiled

    return spoil


class Watched(torch.optim.AdamW):
    """The optimiser of the fit at hand."""

    last: torch.optim.Optimizer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        Watched.last = self


def carry_out(monkeypatch: Any, world: Any, policy: Any, task: Any, work: Path, **changes: Any) -> list[dict[str, Any]]:
    """Fit, and check that a step that was skipped touched nothing and that the others moved; returns the log."""
    monkeypatch.setattr(torch.optim, "AdamW", Watched)
    seen: list[tuple[dict[str, Tensor], dict[str, float]]] = []

    def report(step: int, *_: object) -> None:
        moments = {
            f"{index}.{name}": value.clone()
            for index, entry in Watched.last.state_dict()["state"].items()
            for name, value in entry.items()
        }
        weights = {name: value.clone() for name, value in policy.state_dict().items()}
        seen.append((weights | moments, task.state()))

    fit(policy, task, world.settings(validations=1, **changes), work, seed=3, report=report)
    rows = [json.loads(line) for line in (work / "steps.jsonl").read_text().splitlines()]
    for row, before, after in zip(rows[1:], seen, seen[1:], strict=False):
        same = all(torch.equal(value, after[0][name]) for name, value in before[0].items())
        assert same == ("skipped" in row), row
        assert before[1] == after[1] or "skipped" not in row
    assert all(bool(value.isfinite().all()) for value in seen[-1][0].values())
    assert all(math.isfinite(value) for row in rows for value in row.values())
    return rows


def skipped(rows: list[dict[str, Any]]) -> list[int]:
    return [row["step"] - 1 for row in rows if "skipped" in row]


def causes(rows: list[dict[str, Any]]) -> set[str]:
    return {key.removeprefix("not_finite_") for row in rows for key in row if key.startswith("not_finite_")}


# ---------------------------------------------------------------- rewards


@pytest.mark.parametrize(
    ("name", "place", "gate", "term"),
    [
        *(
            (name, place, gate, "grpo")
            for name, place, gate in itertools.product(VALUES, (0, "all"), ("adagrpo", "all"))
        ),
        *((name, 0, "adagrpo", term) for name, term in itertools.product(VALUES, ("distill", "best_of_n"))),
    ],
)
def test_a_reward_that_is_not_finite(monkeypatch, world, tmp_path, name, place, gate, term):
    policy = world.policy(dropout=0.1)
    task = world.post_training(policy, steps=STEPS, gate=gate, term=term)
    Injected(task, (BAD,)).replace(task.reward, "score", one(VALUES[name], place))
    rows = carry_out(monkeypatch, world, policy, task, tmp_path)
    assert skipped(rows) == [BAD] and causes(rows) == {"reward"}


@pytest.mark.parametrize("size", [1e30, 3e38])
def test_rewards_as_large_as_floats_go_leave_weights_and_spread_finite(monkeypatch, world, tmp_path, size):
    policy = world.policy()
    task = world.post_training(policy, steps=STEPS, gate="all")
    sign = [1.0, -1.0] * 500
    Injected(task, (BAD,)).replace(
        task.reward, "score", lambda values: torch.tensor(sign[: values.numel()]).view_as(values) * size
    )
    carry_out(monkeypatch, world, policy, task, tmp_path)
    assert math.isfinite(task.running_std)


def test_a_constant_reward_is_counted_and_changes_nothing(world, tmp_path):
    policy = world.policy(dropout=0.2)
    task = world.post_training(policy, gate="all", steps=4)
    task.reward.table = torch.full_like(task.reward.table, 0.7)
    fit(policy, task, world.settings(), tmp_path / "constant", seed=3)
    without = world.policy(dropout=0.2)
    fit(without, world.supervised(without, steps=4), world.settings(), tmp_path / "without", seed=3)
    assert all(torch.equal(value, without.state_dict()[name]) for name, value in policy.state_dict().items())
    rows = [json.loads(line) for line in (tmp_path / "constant" / "steps.jsonl").read_text().splitlines()]
    assert [row["constant_rewards"] for row in rows] == [1.0] * 4
    assert [row["rejected_degenerate"] for row in rows] == [1.0] * 4 and not skipped(rows)


# ---------------------------------------------------------------- logits


@pytest.mark.parametrize("name", ["nan", "inf"])
@pytest.mark.parametrize(
    ("method", "options", "cause"),
    [
        ("logits", {}, "logits"),
        ("logits", {"constrained": False}, "logits"),
        ("logits", {"rollout": "beam"}, "logits"),
        ("logits", {"rollout": "beam", "constrained": False}, "logits"),
        ("score", {"constrained": False}, "grpo"),
        ("score", {"constrained": False, "inject_target": True, "grpo": {"beta": 0.1}}, "grpo"),
        ("supervised_loss", {}, "nll"),
    ],
)
def test_logits_that_are_not_finite(monkeypatch, world, tmp_path, name, method, options, cause):
    policy = world.policy()
    task = world.post_training(policy, steps=STEPS, gate="all", **options)
    Injected(task, (BAD,)).replace(policy, method, one(VALUES[name], "all" if method == "logits" else 0))
    rows = carry_out(monkeypatch, world, policy, task, tmp_path)
    assert skipped(rows) == [BAD] and cause in causes(rows)


# ---------------------------------------------------------------- gradients


def test_every_parameter_is_a_place(world):
    assert len([*world.policy().parameters()]) == PARAMETERS


@pytest.mark.parametrize(("place", "name"), [(place, ("nan", "inf")[place % 2]) for place in range(PARAMETERS)])
def test_a_gradient_that_is_not_finite(monkeypatch, world, tmp_path, place, name):
    policy = world.policy()
    task = world.supervised(policy, steps=STEPS)
    Injected(task, (BAD,)).gradient([*policy.parameters()][place], VALUES[name])
    rows = carry_out(monkeypatch, world, policy, task, tmp_path, average=0.5)
    assert skipped(rows) == [BAD] and causes(rows) == {"grad_norm"}


# ---------------------------------------------------------------- three in a row


def spoiled(world: Any, kind: str, steps: tuple[int, ...], **options: Any) -> tuple[CompactPolicy, Injected]:
    policy = world.policy(dropout=0.1)
    task = world.post_training(policy, world.schedule(4, 2), gate="all", **options)
    injected = Injected(task, steps)
    if kind == "reward":
        injected.replace(task.reward, "score", one(math.nan))
    elif kind == "logits":
        injected.replace(policy, "logits", one(math.nan, "all"))
    else:
        injected.gradient(next(policy.parameters()), math.inf)
    return policy, injected


@pytest.mark.parametrize("kind", ["reward", "logits", "gradient"])
def test_three_in_a_row_stop_with_the_batch_and_can_be_repeated(world, tmp_path, same_fit, kind):
    message = {"reward": "the reward TableReward gave NaN", "logits": "the policy's logits", "gradient": "grad_norm"}
    policy, injected = spoiled(world, kind, (2, 3, 4))
    with pytest.raises(Diverged, match=message[kind]) as caught:
        fit(policy, injected.task, world.settings(), tmp_path / "run", seed=3)
    users = [int(user) for batch in world.schedule(4, 2).batches(4) for user in batch.users]
    assert caught.value.step == 5 and caught.value.users == users and len(users) == 8
    assert all(f"{user}," in str(caught.value) for user in users[:5]) and "8 users" in str(caught.value)
    assert all(bool(value.isfinite().all()) for value in policy.state_dict().values())

    # the same command repeats the step, and nothing before it
    policy, injected = spoiled(world, kind, (2, 3, 4))
    with pytest.raises(Diverged) as again:
        fit(policy, injected.task, world.settings(), tmp_path / "run", seed=3)
    assert str(again.value) == str(caught.value) and injected.begun == [4]

    # and once the cause is gone it goes on, as if only the two steps before had been skipped
    policy, injected = spoiled(world, kind, ())
    fit(policy, injected.task, world.settings(), tmp_path / "run", seed=3)
    assert injected.begun[0] == 4
    policy, injected = spoiled(world, kind, (2, 3))
    fit(policy, injected.task, world.settings(), tmp_path / "whole", seed=3)
    same_fit(tmp_path / "run", tmp_path / "whole")


def test_with_several_iterations_a_batch_is_counted_once(world, tmp_path):
    """Steps 2 and 3 are one batch, 4 and 5 the next: after the third batch it ends."""
    for last, ends in ((5, False), (7, True)):
        policy, injected = spoiled(world, "reward", tuple(range(2, last + 1)), num_iterations=2)
        if ends:
            with pytest.raises(Diverged, match="up to step 8"):
                fit(policy, injected.task, world.settings(), tmp_path / str(last), seed=3)
        else:
            fit(policy, injected.task, world.settings(), tmp_path / str(last), seed=3)
            rows = [json.loads(line) for line in (tmp_path / str(last) / "steps.jsonl").read_text().splitlines()]
            assert skipped(rows) == [2, 3, 4, 5]


def test_groups_of_an_earlier_batch_never_serve_a_batch_whose_own_could_not_be_drawn(world):
    _, injected = spoiled(world, "reward", (2,), num_iterations=2)
    first, _ = injected.task.begin(0)
    with pytest.raises(FloatingPointError):
        injected.task.begin(2)
    third, _ = injected.task.begin(3)
    assert third[0].batch.users.tolist() != first[0].batch.users.tolist()


def test_a_validation_that_is_nan_never_stays_the_best(world, tmp_path):
    policy = world.policy()
    task = world.supervised(policy, steps=4)
    actual = iter([math.nan, math.nan, 0.2, 0.1, math.nan])
    task.validate = lambda: {"ndcg@10": next(actual)}
    result = fit(policy, task, world.settings(validations=4), tmp_path, seed=3)
    assert result.best_step == 2
