"""The loop: resume to the same bits, best checkpoint, skipped steps, accumulation, schedules, gradient norms."""

from __future__ import annotations

import json
import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from errno import ENOSPC
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from adagrpo.errors import UserError
from adagrpo.trainer import Diverged, fit, loop
from adagrpo.trainer.batches import step_key


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Script:
    """A task on `nn.Linear(3, 1)` whose losses are scripted: `factor(step)` times the mean output."""

    monitor = "ndcg@10"
    term_norms_every = 0
    stride = 1

    def __init__(self, model: nn.Module, steps: int, factor: Callable[[int], float] = lambda step: 1.0) -> None:
        self.model, self.steps, self.factor = model, steps, factor
        self.metrics: Callable[[int], float] = lambda call: float(call)
        self.calls = 0
        self.modes: list[bool] = []

    def users(self, step: int) -> Sequence[int]:
        return [10 + step]

    def begin(self, step: int) -> tuple[Sequence[float], dict[str, float]]:
        self.modes.append(self.model.training)
        return [self.factor(step)], {"drawn": float(step)}

    def loss(self, micro: float) -> tuple[dict[str, Tensor], dict[str, float]]:
        self.model.train()
        return {"one": self.model(torch.tensor([1.0, 2.0, -1.0])).sum() * micro}, {"seen": 1.0}

    def validate(self) -> dict[str, float]:
        self.modes.append(self.model.training)
        self.calls += 1
        return {"ndcg@10": self.metrics(self.calls - 1)}

    def state(self) -> dict[str, float]:
        return {"calls": float(self.calls)}

    def load_state(self, state: Mapping[str, float]) -> None:
        self.calls = int(state["calls"])


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 1)


# ---------------------------------------------------------------- resume


def task_of(world: Any, kind: str, batch_size: int, accumulation: int) -> tuple[Any, Any]:
    policy = world.policy(dropout=0.2)
    schedule = world.schedule(batch_size, accumulation)
    if kind == "supervised":
        return policy, world.supervised(policy, schedule)
    options = {"num_iterations": 2, "steps": 4} if kind == "two iterations" else {}
    task = world.post_training(
        policy, schedule, grpo={"beta": 0.1}, inject_target=True, reward_floor=0.5, term_norms_every=3, **options
    )
    return policy, task


def interrupt(stop_at: Any, task: tuple[Any, Any], settings: Any, work: Path) -> None:
    """Run a fit until its report callback raises."""
    stop, report = stop_at
    with pytest.raises(stop):
        fit(*task, settings, work, seed=3, report=report)


@pytest.mark.parametrize(
    ("kind", "batch_size", "accumulation"),
    [
        ("supervised", 8, 1),
        ("supervised", 4, 2),
        ("post", 8, 1),
        ("post", 4, 2),
        ("two iterations", 8, 1),
    ],
)
def test_an_interrupted_fit_ends_at_the_same_bits(world, tmp_path, stop_at, same_fit, kind, batch_size, accumulation):
    # an epoch has 4 steps (25 users), so 3 and 6 lie in the middle of one, 4 at its end; what waits does so until then
    policy, task = task_of(world, kind, batch_size, accumulation)
    whole, settings = tmp_path / "whole", world.settings()
    expected = fit(policy, task, settings, whole, seed=3)
    for interruption in (3, 4, 6):
        work = tmp_path / str(interruption)
        policy, task = task_of(world, kind, batch_size, accumulation)
        stop, report = stop_at(interruption)
        with pytest.raises(stop):
            fit(policy, task, world.settings(checkpoint_seconds=0), work, seed=3, report=report)
        assert not (work / "final").exists()
        torch.manual_seed(99)  # a new process starts anywhere
        policy, task = task_of(world, kind, batch_size, accumulation)
        seen: list[int] = []
        result = fit(policy, task, settings, work, seed=3, report=lambda step, *_, seen=seen: seen.append(step))
        stride = 2 if kind == "two iterations" else 1
        assert seen[0] == interruption // stride * stride + 1, "it began anew instead of resuming"
        assert result == expected
        same_fit(whole, work)


def test_a_fit_can_be_interrupted_after_every_step(world, tmp_path, stop_at, same_fit):
    fit(*task_of(world, "post", 4, 2), world.settings(), tmp_path / "whole", seed=3)
    for step in range(1, 8):
        stop, report = stop_at(step)
        with pytest.raises(stop):
            fit(
                *task_of(world, "post", 4, 2),
                world.settings(checkpoint_seconds=0),
                tmp_path / "cut",
                seed=3,
                report=report,
            )
    fit(*task_of(world, "post", 4, 2), world.settings(), tmp_path / "cut", seed=3)
    same_fit(tmp_path / "whole", tmp_path / "cut")


class Counted(Script):
    """A state that every step moves, which the loss reads; a second signal may come in the middle of a step."""

    def __init__(self, model: nn.Module, steps: int, signal_in_loss: int = -1) -> None:
        super().__init__(model, steps)
        self.spread, self.signal_in_loss = 0, signal_in_loss

    def begin(self, step: int) -> tuple[Sequence[float], dict[str, float]]:
        self.spread += 1
        if step == self.signal_in_loss:
            raise KeyboardInterrupt
        return [1.0 + self.spread], {}

    def state(self) -> dict[str, float]:
        return {"spread": self.spread}

    def load_state(self, state: Mapping[str, float]) -> None:
        self.spread = int(state["spread"])


@pytest.mark.parametrize("place", [None, "loop:_Loop._fold_into_average", "loop:_append"])
def test_a_second_signal_within_a_step_leaves_no_half_of_it(world, tmp_path, monkeypatch, place):
    """Before the weights move, the state before the step is kept; while they do, none is, and the last one counts."""
    settings, steps = world.settings(validations=1, average=0.9, checkpoint_seconds=0), 6
    whole = Counted(linear(), steps)
    fit(whole.model, whole, settings, tmp_path / "whole", seed=3)
    torn = Counted(linear(), steps, 3 if place is None else -1)
    with monkeypatch.context() as patched:
        if place is not None:
            original = pkgutil.resolve_name(f"adagrpo.trainer.{place}")

            def in_the_fourth(*given: Any) -> Any:
                if torn.spread == 4:
                    raise KeyboardInterrupt
                return original(*given)

            patched.setattr(f"adagrpo.trainer.{place.replace(':', '.')}", in_the_fourth)
        with pytest.raises(KeyboardInterrupt):
            fit(torn.model, torn, settings, tmp_path / "torn", seed=3)
    again = Counted(linear(), steps)
    fit(again.model, again, settings, tmp_path / "torn", seed=3)
    assert again.spread == whole.spread == steps
    for name in ("weight", "bias"):
        assert torch.equal(getattr(again.model, name), getattr(whole.model, name))
    assert [row["step"] for row in rows(tmp_path / "torn" / "steps.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_no_validation_is_due_of_no_step(tmp_path, world):
    script = Script(linear(), 0)
    assert fit(script.model, script, world.settings(validations=0), tmp_path, seed=0).best_step == 0


def test_a_checkpoint_copies_no_weights_of_its_own(world, tmp_path, monkeypatch):
    """The best ones and the average are written from where they are; a copy of both doubled the memory of a save."""
    monkeypatch.setattr(Tensor, "__deepcopy__", None)
    script = Script(linear(), 3)
    fit(script.model, script, world.settings(average=0.9, checkpoint_seconds=0), tmp_path, seed=0)
    assert script.calls > 1


def test_bfloat16_resumes_to_the_same_bits_too(world, tmp_path, stop_at, same_fit, monkeypatch):
    monkeypatch.setattr("adagrpo.trainer.loop.autocast_dtype", lambda device: torch.bfloat16)
    fit(*task_of(world, "post", 8, 1), world.settings(), tmp_path / "whole", seed=3)
    interrupt(stop_at(3), task_of(world, "post", 8, 1), world.settings(checkpoint_seconds=0), tmp_path / "cut")
    fit(*task_of(world, "post", 8, 1), world.settings(), tmp_path / "cut", seed=3)
    same_fit(tmp_path / "whole", tmp_path / "cut")


def test_rows_after_the_checkpoint_and_half_a_row_are_dropped(world, tmp_path, stop_at, same_fit):
    fit(*task_of(world, "supervised", 8, 1), world.settings(), tmp_path / "whole", seed=3)
    interrupt(stop_at(3), task_of(world, "supervised", 8, 1), world.settings(checkpoint_seconds=0), tmp_path / "cut")
    for name in ("steps.jsonl", "validation.jsonl"):
        with (tmp_path / "cut" / name).open("a") as file:
            file.write('{"step": 4, "nll": 1.0}\n{"step": 5, "nl')
    fit(*task_of(world, "supervised", 8, 1), world.settings(), tmp_path / "cut", seed=3)
    same_fit(tmp_path / "whole", tmp_path / "cut")


def test_a_full_disk_while_rows_are_dropped_leaves_all_of_them(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(ENOSPC, "no space left")

    path, content = tmp_path / "validation.jsonl", '{"step": 0}\n{"step": 2}\n'
    path.write_text(content)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr("adagrpo.storage.writing.os.fsync", full)
        loop._cut(path, 1)
    assert path.read_text() == content
    loop._cut(path, 1)
    assert path.read_text() == '{"step": 0}\n'


def test_an_interruption_before_the_first_checkpoint_starts_anew(world, tmp_path, stop_at, same_fit):
    fit(*task_of(world, "supervised", 8, 1), world.settings(), tmp_path / "whole", seed=3)
    stop, report = stop_at(3)
    with pytest.raises(stop):
        fit(*task_of(world, "supervised", 8, 1), world.settings(), tmp_path / "cut", seed=3, report=report)
    assert not (tmp_path / "cut" / "checkpoints").exists()
    fit(*task_of(world, "supervised", 8, 1), world.settings(), tmp_path / "cut", seed=3)
    same_fit(tmp_path / "whole", tmp_path / "cut")


def test_a_damaged_newest_checkpoint_is_refused_by_name(world, tmp_path, stop_at):
    interrupt(stop_at(3), task_of(world, "supervised", 8, 1), world.settings(checkpoint_seconds=0), tmp_path)
    path = tmp_path / "checkpoints" / "000000003" / "optimizer.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"000000003/optimizer\.safetensors: content differs"):
        fit(*task_of(world, "supervised", 8, 1), world.settings(), tmp_path, seed=3)


def test_another_seed_ends_elsewhere(world, tmp_path, read_fit):
    for seed in (3, 4):
        fit(*task_of(world, "supervised", 8, 1), world.settings(), tmp_path / str(seed), seed=seed)
    assert read_fit(tmp_path / "3")["logs"] != read_fit(tmp_path / "4")["logs"]


# ---------------------------------------------------------------- validation and the best checkpoint


@pytest.mark.parametrize(
    ("metric", "best"),
    [(lambda call: -call, 0), (lambda call: call, 9), (lambda call: min(call, 2), 4), (lambda call: 0.5, 0)],
)
def test_the_best_checkpoint_may_be_step_0(world, tmp_path, metric, best):
    model = linear()
    task = Script(model, 9)
    task.metrics = metric
    weights: list[Tensor] = [model.weight.detach().clone()]
    result = fit(
        model,
        task,
        world.settings(validations=4),
        tmp_path,
        seed=0,
        report=lambda *_: weights.append(model.weight.detach().clone()),
    )
    assert [row["step"] for row in result.validation] == [0, 2, 4, 6, 8, 9]
    assert result.best_step == best and result.steps == 9
    assert torch.equal(load_file(tmp_path / "best" / "model.safetensors")["weight"], weights[best])
    assert torch.equal(load_file(tmp_path / "final" / "model.safetensors")["weight"], weights[9])
    assert json.loads((tmp_path / "best" / "checkpoint.json").read_text()) == {"step": best}
    assert result.validation == rows(tmp_path / "validation.jsonl")


@pytest.mark.parametrize(("patience", "end"), [(0, 12), (1, 6), (2, 8), (9, 12)])
@pytest.mark.parametrize("killed", [None, 5, 6])
def test_a_fit_ends_after_validations_without_a_new_best(world, tmp_path, patience, end, killed):
    settings = world.settings(validations=6, patience=patience, checkpoint_seconds=0)

    def report(step: int, steps: int, values: Mapping[str, float]) -> None:
        if step == killed:
            raise KeyboardInterrupt

    def begun(**named: Any) -> loop.FitResult:
        task = Script(model := linear(), 12)
        task.metrics = lambda call: float(min(call, 2))  # the best is that of step 4
        return fit(model, task, settings, tmp_path, seed=0, **named)

    if killed is not None:
        with pytest.raises(KeyboardInterrupt):
            begun(report=report)
    result = begun()
    assert (result.best_step, result.steps, result.validation[-1]["step"]) == (4, end, end)


def test_without_validations_the_start_and_the_end_are_compared(world, tmp_path):
    model = linear()
    result = fit(model, Script(model, 5), world.settings(validations=0), tmp_path, seed=0)
    assert [row["step"] for row in result.validation] == [0, 5]


def test_a_fit_until_a_step_is_the_beginning_of_the_whole_one_and_ends_there_without_validation(world, tmp_path):
    weights: list[Tensor] = []
    model = linear()
    note = lambda *_: weights.append(model.weight.detach().clone())  # noqa: E731
    fit(model, Script(model, 9), world.settings(), tmp_path / "whole", seed=0, report=note)
    part, task = linear(), Script(linear(), 9)
    task.model, task.validate = part, dict
    result = fit(part, task, world.settings(validations=4), tmp_path / "part", seed=0, until=5)
    without = [
        {name: value for name, value in row.items() if not name.startswith("validation/")}
        for row in rows(tmp_path / "whole" / "steps.jsonl")[:5]
    ]
    assert rows(tmp_path / "part" / "steps.jsonl") == without and result.best_step == result.steps == 5
    for kind in ("best", "final"):
        found = load_file(tmp_path / "part" / kind / "model.safetensors")["weight"]
        assert torch.equal(found, weights[4])
    at_start = linear()
    task = Script(at_start, 9)
    task.validate = dict
    assert fit(at_start, task, world.settings(), tmp_path / "none", seed=0, until=0).best_step == 0
    assert torch.equal(load_file(tmp_path / "none" / "best" / "model.safetensors")["weight"], linear().weight)


def test_drawing_and_validating_happen_in_evaluation_mode(world, tmp_path):
    task = Script(model := linear(), 3)
    fit(model.train(), task, world.settings(), tmp_path, seed=0)
    assert len(task.modes) == 3 + 4 and not any(task.modes)


def test_validating_more_often_does_not_change_the_training(world, tmp_path):
    for validations in (1, 7):
        settings = world.settings(validations=validations)
        fit(*task_of(world, "post", 8, 1), settings, tmp_path / str(validations), seed=3)
    one, seven = ((tmp_path / name / "steps.jsonl").read_text() for name in "17")
    assert one == seven
    one, seven = (load_file(tmp_path / name / "final" / "model.safetensors") for name in "17")
    assert all(torch.equal(tensor, seven[name]) for name, tensor in one.items())


# ---------------------------------------------------------------- averaged weights


def test_the_average_is_what_is_validated_and_kept_by_hand(world, tmp_path):
    model = linear()
    raw, average, validated = [model.weight.detach().clone()], model.weight.detach().clone(), []

    class Watched(Script):
        def validate(self) -> dict[str, float]:
            validated.append(self.model.weight.detach().clone())
            return super().validate()

    def report(step: int, *_: object) -> None:
        raw.append(model.weight.detach().clone())

    task = Watched(model, 12, lambda step: math.nan if step == 5 else 1.0)
    fit(model, task, world.settings(average=0.6, validations=12), tmp_path, seed=0, report=report)
    expected = [average]
    for step in range(12):
        decay = min(0.6, (1 + step) / (10 + step))
        # a skipped step (5) moves neither the weights nor their average
        average = average if step == 5 else decay * average + (1 - decay) * raw[step + 1]
        expected.append(average)
    assert not torch.equal(raw[12], raw[11]), "training goes on from the raw weights"
    for actual, by_hand in zip(validated, expected, strict=True):
        torch.testing.assert_close(actual, by_hand, rtol=1e-6, atol=1e-7)
    final = load_file(tmp_path / "final" / "model.safetensors")["weight"]
    assert torch.equal(final, validated[-1]) and torch.equal(model.weight, final)
    assert torch.equal(load_file(tmp_path / "best" / "model.safetensors")["weight"], validated[-1])


def test_averaging_does_not_change_the_training(world, tmp_path):
    for average in (0.0, 0.9):
        settings = world.settings(average=average, validations=3)
        fit(*task_of(world, "post", 8, 1), settings, tmp_path / str(average), seed=3)
    without, averaged = ((tmp_path / name / "steps.jsonl").read_text() for name in ("0.0", "0.9"))
    assert without == averaged


def test_an_interrupted_fit_with_an_average_ends_at_the_same_bits(world, tmp_path, stop_at, same_fit):
    settings = world.settings(average=0.7)
    fit(*task_of(world, "supervised", 4, 2), settings, tmp_path / "whole", seed=3)
    for interruption in (1, 3, 6):
        work = tmp_path / str(interruption)
        often = world.settings(average=0.7, checkpoint_seconds=0)
        interrupt(stop_at(interruption), task_of(world, "supervised", 4, 2), often, work)
        fit(*task_of(world, "supervised", 4, 2), settings, work, seed=3)
        same_fit(tmp_path / "whole", work)


# ---------------------------------------------------------------- steps that are not finite


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_that_is_not_finite_touches_nothing(world, tmp_path, bad):
    snapshots: list[dict[str, Tensor]] = []

    def report(step: int, *_: object) -> None:
        folder = tmp_path / "checkpoints" / f"{step:09d}"
        snapshots.append(
            load_file(folder / "model.safetensors")
            | {f"moments.{name}": tensor for name, tensor in load_file(folder / "optimizer.safetensors").items()}
        )

    model = linear()
    task = Script(model, 6, lambda step: bad if step in (2, 3, 5) else 1.0)
    fit(model, task, world.settings(checkpoint_seconds=0), tmp_path, seed=0, report=report)

    def same(one: int, other: int) -> bool:
        assert snapshots[one].keys() == snapshots[other].keys() and len(snapshots[one]) == 2 + 2 * 3
        return all(torch.equal(tensor, snapshots[other][name]) for name, tensor in snapshots[one].items())

    assert [same(step, step + 1) for step in range(5)] == [False, True, True, False, True]
    logged = rows(tmp_path / "steps.jsonl")
    assert [row["step"] for row in logged] == [1, 2, 3, 4, 5, 6]
    assert [row.get("skipped") for row in logged] == [None, None, 1.0, 1.0, None, 1.0]
    assert all("one" not in row and "grad_norm" not in row for row in logged if "skipped" in row)
    assert all(row["not_finite_one"] == row["not_finite_grad_norm"] == 1.0 for row in logged if "skipped" in row)
    progress = json.loads((tmp_path / "checkpoints" / "000000006" / "progress.json").read_text())
    assert progress["skipped"] == 3 and progress["skipped_in_a_row"] == 1


def test_a_finite_loss_with_an_infinite_gradient_is_skipped(world, tmp_path):
    model = linear()
    with torch.no_grad():
        model.weight.zero_(), model.bias.zero_()
    before = model.weight.detach().clone()

    class Root(Script):
        def loss(self, micro: float) -> tuple[dict[str, Tensor], dict[str, float]]:
            return {"one": self.model(torch.tensor([1.0, 2.0, -1.0])).abs().sqrt().sum()}, {}

    fit(model, Root(model, 2), world.settings(), tmp_path, seed=0)
    assert torch.equal(model.weight, before)
    assert [row["skipped"] for row in rows(tmp_path / "steps.jsonl")] == [1.0, 1.0]


def test_three_in_a_row_diverge(world, tmp_path):
    model = linear()
    task = Script(model, 20, lambda step: math.nan if step in (1, 2, 4, 5, 6) else 1.0)
    message = r"3 batches in a row are not finite, up to step 7 \(seed 7; 1 users: 16\): one, grad_norm\. Nothing"
    with pytest.raises(Diverged, match=message):
        fit(model, task, world.settings(), tmp_path, seed=7)
    assert bool(model.weight.isfinite().all())


def test_the_count_in_a_row_survives_an_interruption(world, tmp_path, stop_at):
    def make() -> tuple[nn.Module, Script]:
        return (model := linear()), Script(model, 20, lambda step: math.nan if step >= 2 else 1.0)

    stop, report = stop_at(4)
    with pytest.raises(stop):
        fit(*make(), world.settings(checkpoint_seconds=0), tmp_path, seed=0, report=report)
    with pytest.raises(Diverged, match="up to step 5"):
        fit(*make(), world.settings(), tmp_path, seed=0)


# ---------------------------------------------------------------- the step itself


def test_learning_rate_rises_and_falls_by_hand(world, tmp_path):
    model = linear()
    fit(model, Script(model, 10), world.settings(learning_rate=0.4, warmup=0.2), tmp_path, seed=0)
    rates = [row["learning_rate"] / 0.4 for row in rows(tmp_path / "steps.jsonl")]
    expected = [0.5, 1.0] + [0.1 + 0.45 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert rates == pytest.approx(expected, rel=1e-12)


def test_one_step_is_adamw_on_the_clipped_gradient_by_hand(world, tmp_path):
    model = linear()
    weight, bias = model.weight.detach().clone()[0], float(model.bias.detach())
    settings = world.settings(learning_rate=0.01, warmup=0.0, weight_decay=0.5, max_grad_norm=0.1)
    values = []
    fit(model, Script(model, 1), settings, tmp_path, seed=0, report=lambda *args: values.append(args[2]))
    # the gradient is (1, 2, -1 | 1) of norm sqrt(7); Adam's first step has size lr whatever the gradient's length
    assert values[0]["grad_norm"] == pytest.approx(7**0.5, rel=1e-6)
    expected = weight * (1 - 0.01 * 0.5) - 0.01 * torch.tensor([1.0, 1.0, -1.0])
    torch.testing.assert_close(model.weight.detach()[0], expected, rtol=1e-5, atol=1e-6)
    assert float(model.bias.detach()) == pytest.approx(bias - 0.01, rel=1e-5), "biases are not decayed"
    moments = torch.tensor([1.0, 2.0, -1.0]) * 0.1 / 7**0.5
    fit(
        model := linear(),
        Script(model, 1),
        settings.model_copy(update={"checkpoint_seconds": 0.0}),
        tmp_path / "b",
        seed=0,
    )
    saved = load_file(tmp_path / "b" / "checkpoints" / "000000001" / "optimizer.safetensors")
    torch.testing.assert_close(saved["0.exp_avg"][0], 0.1 * moments, rtol=1e-5, atol=0)
    torch.testing.assert_close(saved["0.exp_avg_sq"][0], 0.02 * moments.square(), rtol=1e-5, atol=0)


def test_terms_and_logged_numbers_add_up_over_micro_batches(world, tmp_path):
    class Parts(Script):
        def begin(self, step: int) -> tuple[Sequence[float], dict[str, float]]:
            return [1.0, 2.0, 4.0], {"drawn": 5.0}

    model = linear()
    value = model(torch.tensor([1.0, 2.0, -1.0])).item()
    fit(model, Parts(model, 1), world.settings(), tmp_path, seed=0)
    row = rows(tmp_path / "steps.jsonl")[0]
    assert row["one"] == pytest.approx(7 * value, rel=1e-5)
    assert row["seen"] == 3.0 and row["drawn"] == 5.0
    assert row["grad_norm"] == pytest.approx(7 * 7**0.5, rel=1e-5)


@pytest.mark.parametrize("kind", ["supervised", "post"])
def test_one_batch_of_8_is_four_of_2(world, tmp_path, kind):
    actual = []
    for size in (8, 2):
        policy, schedule = world.policy(), world.split(world.schedule(8), size)
        make = world.supervised if kind == "supervised" else world.post_training
        options = {} if kind == "supervised" else {"grpo": {"beta": 0.1}, "term_norms_every": 1, "reward_floor": 0.0}
        fit(policy, make(policy, schedule, steps=4, **options), world.settings(), tmp_path / str(size), seed=3)
        actual.append((policy, rows(tmp_path / str(size) / "steps.jsonl")))
    (one, one_rows), (four, four_rows) = actual
    for first, second in zip(one_rows, four_rows, strict=True):
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert value == pytest.approx(second[name], rel=1e-4, abs=1e-6), name
    for name, tensor in one.state_dict().items():
        other = four.state_dict()[name]
        if name.endswith("query_key_value.bias"):  # the keys' part has gradient 0 up to rounding, which Adam blows up
            tensor, other = tensor.view(3, -1)[[0, 2]], other.view(3, -1)[[0, 2]]
        torch.testing.assert_close(tensor, other, rtol=1e-5, atol=1e-5, msg=name)
    if kind == "post":
        assert any(row["admission"] > 0 for row in one_rows)


def test_logged_gradient_norms_are_those_of_each_term(world, tmp_path):
    policy = world.policy(dropout=0.2)
    task = world.post_training(
        policy, world.schedule(4, 2), gate="rollout_miss", q_min=0.0, term_norms_every=2, steps=3
    )
    fit(policy, task, world.settings(), tmp_path, seed=3)
    logged = rows(tmp_path / "steps.jsonl")
    assert [sum(name.startswith("grad_norm_") for name in row) for row in logged] == [2, 0, 2]

    policy = world.policy(dropout=0.2).eval()
    task = world.post_training(policy, world.schedule(4, 2), gate="rollout_miss", q_min=0.0)
    sums: dict[str, list[Tensor]] = {}
    for index, micro in enumerate(task.begin(0)[0]):
        torch.manual_seed(step_key(3, 0, 2 * index))
        for name, term in task.loss(micro)[0].items():
            gradients = torch.autograd.grad(term, list(policy.parameters()), allow_unused=True, materialize_grads=True)
            before = sums.get(name, [torch.zeros(())] * len(gradients))
            sums[name] = [one + other for one, other in zip(before, gradients, strict=True)]
    assert set(sums) == {"nll", "grpo"}
    for name, gradients in sums.items():
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        assert logged[0][f"grad_norm_{name}"] == pytest.approx(float(norm), rel=1e-5)
    both = torch.cat([(a + b).flatten() for a, b in zip(sums["nll"], sums["grpo"], strict=True)]).norm()
    assert logged[0]["grad_norm"] == pytest.approx(float(both), rel=1e-5)


def test_measuring_gradient_norms_does_not_change_the_training(world, tmp_path):
    for every in (0, 1):
        policy = world.policy(dropout=0.2)
        task = world.post_training(policy, term_norms_every=every)
        fit(policy, task, world.settings(), tmp_path / str(every), seed=3)
    without, measured = (load_file(tmp_path / name / "final" / "model.safetensors") for name in "01")
    assert all(torch.equal(tensor, measured[name]) for name, tensor in without.items())


def test_micro_batches_have_unrelated_randomness_and_leave_the_odd_keys_to_the_task(world, tmp_path):
    drawn: list[float] = []

    class Drawing(Script):
        def begin(self, step: int) -> tuple[Sequence[float], dict[str, float]]:
            return [1.0, 1.0], {}

        def loss(self, micro: float) -> tuple[dict[str, Tensor], dict[str, float]]:
            drawn.append(float(torch.rand(())))
            return super().loss(micro)

    model = linear()
    fit(model, Drawing(model, 3), world.settings(), tmp_path, seed=3)
    expected = []
    for step in range(3):
        for index in range(2):
            torch.manual_seed(step_key(3, step, 2 * index))
            expected.append(float(torch.rand(())))
    assert drawn == expected and len(set(drawn)) == 6
