"""Pressure: λ from the lengths of gradients, by hand on two parameters, against a twin, and through whole fits."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adagrpo.errors import NotFinite, UserError
from adagrpo.policies import HybridPolicy
from adagrpo.trainer import fit
from adagrpo.trainer.batches import step_key
from adagrpo.trainer.pressure import Calibrated, TermGradients, calibrate, mean_pressure, solve
from adagrpo.trainer.processes import Processes


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adagrpo.networks.autocast_dtype", lambda device: None)


class Two(nn.Module):
    """Two parameters, a and b."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(2.0))


class Toy:
    """anchor = 3a + 4b: its gradient is (3, 4), of length 5. In step k the term is factor_k · (a - b), length √2."""

    steps, stride, term, term_norms_every, monitor = 9, 1, "grpo", 0, "ndcg@10"

    def __init__(self, model: Two, factors: Sequence[float | None], parts: int = 1) -> None:
        self.model, self.factors, self.parts, self.spread = model, factors, parts, 7.0

    def users(self, step: int) -> list[int]:
        return []

    def begin(self, step: int) -> tuple[list[float | None], dict[str, float]]:
        self.spread += 1.0
        return [self.factors[step]] * self.parts, {}

    def loss(self, micro: float | None) -> tuple[dict[str, Tensor], dict[str, float]]:
        a, b = self.model.a, self.model.b
        terms = {"nll": (3 * a + 4 * b) / self.parts}
        return terms if micro is None else terms | {"grpo": micro * (a - b) / self.parts}, {}

    def stated_anchor(self, micro: float | None) -> Iterator[Tensor]:
        yield self.model.a / self.parts  # in two parts, a + b/2: length √1.25
        yield self.model.b / 2 / self.parts

    def state(self) -> dict[str, float]:
        return {"spread": self.spread}

    def load_state(self, state: Mapping[str, float]) -> None:
        self.spread = state["spread"]

    def validate(self) -> dict[str, float]:
        return {}


def measured(task: Any, work: Path, pressure: float, steps: int, model: nn.Module | None = None) -> Calibrated:
    arguments = {"pressure": pressure, "steps": steps, "seed": 3, "shared_by": Processes()}
    return calibrate(model or task.model, task, work, **arguments)[0]


@pytest.mark.parametrize("parts", [1, 3])
def test_two_parameters_by_hand(tmp_path: Path, parts: int) -> None:
    task = Toy(Two(), [1.0, None, 2.0, 99.0], parts)  # nothing was admitted in the second step; the fourth is not read
    found = measured(task, tmp_path, 0.3, 3)
    # rms of √2 · (1, 0, 2) is √(10 / 3); over 5 this is .365148, and .3 over that is .82158
    assert found.lambda_ == pytest.approx(0.8216, abs=1e-9) and found.ratio == pytest.approx(0.3651484, rel=1e-5)
    assert found.term_norms == pytest.approx((math.sqrt(2), 0.0, math.sqrt(8)), rel=1e-6)
    assert found.anchor_norms == pytest.approx((5.0, 5.0, 5.0), rel=1e-6)
    assert found.stated_norms == pytest.approx((math.sqrt(1.25),) * 3, rel=1e-6)
    assert task.spread == 7.0 and task.model.a.item() == 1.0 and task.model.a.grad is None
    assert "anchor's is 4.47 times" in found.sentence()


def test_the_ratio_at_the_lambda_is_the_pressure(tmp_path: Path) -> None:
    found = measured(Toy(Two(), [1.0, 2.0]), tmp_path, 0.3, 2)
    turned = measured(Toy(Two(), [found.lambda_, 2 * found.lambda_]), tmp_path / "again", 0.3, 2)
    assert turned.ratio == pytest.approx(0.3, rel=5e-4) and turned.lambda_ == pytest.approx(1.0, rel=5e-4)


@pytest.mark.parametrize(
    ("terms", "anchors", "says"),
    [
        ([0.0, 0.0], [1.0, 1.0], "the reward term has no gradient in 2 steps at the starting policy"),
        ([1.0], [0.0], "the anchor has no gradient"),
        ([math.nan, 1.0], [1.0, 1.0], "a gradient is not finite"),
        ([1.0, 1.0], [1.0, math.inf], "a gradient is not finite"),
    ],
)
def test_what_gives_no_lambda_is_refused(terms: list[float], anchors: list[float], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        solve(0.5, terms, anchors)
    assert "objective.pressure 0.5" in str(caught.value) and "\n" not in str(caught.value)


def test_a_batch_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    class Broken(Toy):
        def loss(self, micro: float | None) -> tuple[dict[str, Tensor], dict[str, float]]:
            raise NotFinite("reward", "the reward of item 3 is nan")

    with pytest.raises(UserError, match=r"objective\.pressure 1: at the starting policy, the reward of item 3 is nan"):
        measured(Broken(Two(), [1.0]), tmp_path, 1.0, 1)
    assert not (tmp_path / "pressure.json").exists()


def test_an_interrupted_attempt_is_believed(tmp_path: Path) -> None:
    found = measured(Toy(Two(), [1.0]), tmp_path, 0.3, 1)
    again, now = calibrate(Two(), Toy(Two(), []), tmp_path, pressure=0.3, steps=1, seed=3, shared_by=Processes())
    assert again == found and not now
    assert json.loads((tmp_path / "pressure.json").read_text())["lambda_"] == found.lambda_


def test_processes_add_up_what_each_has(tmp_path: Path) -> None:
    """Two processes of one micro-batch each, of which one admitted nothing, are one process with both."""

    class Second(Processes):
        def __init__(self, own: dict[str, Tensor]) -> None:
            super().__init__(0, 2)
            self.own = own

        def gather(self, value: Any) -> list[Any]:
            return [value, ["nll", "grpo"]]

        def sum_(self, tensors: Sequence[Tensor]) -> None:
            name = "grpo" if not torch.stack([*tensors]).any() else "nll"
            for tensor, other in zip(tensors, self.own[name], strict=True):
                tensor += other

    model = Two()
    gradients = TermGradients([*model.parameters()], Second({"nll": torch.tensor([3.0, 0.0]), "grpo": torch.ones(2)}))
    gradients.add({"nll": 4 * model.b})
    assert gradients.norms() == pytest.approx({"nll": 5.0, "grpo": math.sqrt(2)})


# ---------------------------------------------------------------- the real task


def slow_norm(policy: nn.Module, terms: list[Tensor]) -> float:
    gradients = torch.autograd.grad(torch.stack(terms).sum(), [*policy.parameters()], materialize_grads=True)
    return float(torch.cat([gradient.flatten() for gradient in gradients]).norm())


@pytest.mark.parametrize("options", [{}, {"term": "distill"}, {"rollout": "beam"}, {"gate": "random"}])
def test_calibration_is_the_twin(world: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    policy = world.policy(dropout=0.2)
    task = world.post_training(policy, world.schedule(4, 2), **({"gate": "all"} | options))
    found = measured(task, tmp_path, 0.7, 4, policy)
    twin = world.post_training(policy, world.schedule(4, 2), **({"gate": "all"} | options))
    anchors, terms = [], []
    for step in range(4):
        _, micros, _ = world.draw(twin, step)
        parts: dict[str, list[Tensor]] = {"nll": [], twin.term: []}
        for index, micro in enumerate(micros):
            torch.manual_seed(step_key(3, step, 2 * index))
            for name, value in twin.loss(micro)[0].items():
                parts[name].append(value)
        anchors.append(slow_norm(policy, parts["nll"]))
        terms.append(slow_norm(policy, parts[twin.term]) if parts[twin.term] else 0.0)
    assert found.anchor_norms == pytest.approx(anchors, rel=1e-4) and found.term_norms == pytest.approx(terms, rel=1e-4)
    ratio = math.sqrt(sum(t * t for t in terms) / sum(a * a for a in anchors))
    assert found.lambda_ == pytest.approx(0.7 / ratio, rel=5e-4) and found.anchor_over_stated is None
    assert task.running_std == 0.0


def test_the_stated_anchor_of_a_hybrid_policy(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adagrpo.trainer.post_training.PART", 3)
    monkeypatch.setattr("adagrpo.trainer.pressure.STATED_STEPS", 2)
    policy = HybridPolicy(world.policy(), world.catalog.trie, negatives=0, item_dropout=0.0)
    task = world.post_training(policy, world.schedule(4, 2), gate="all")
    found = measured(task, tmp_path, 0.5, 3, policy)
    stated = []
    for step in range(3):
        batches = world.schedule(4, 2).batches(step)
        losses = [
            -torch.stack(world.walk(policy, batch.histories.items[row, : place + 1].tolist(), codes, 1.0)).mean()
            for batch in batches
            for row, place, codes in zip(
                batch.rows.tolist(),
                batch.positions.tolist(),
                world.catalog.codes[batch.targets].tolist(),
                strict=True,
            )
        ]
        stated.append(slow_norm(policy, [torch.stack(losses).mean()]))
    assert found.stated_norms == pytest.approx(stated[:2], rel=1e-4)
    anchors, norms = (math.sqrt(sum(norm * norm for norm in row[:2])) for row in (found.anchor_norms, stated))
    assert found.anchor_over_stated == pytest.approx(anchors / norms, rel=1e-4) != pytest.approx(1.0, rel=0.05)


def test_how_a_step_is_cut_changes_no_lambda(world: Any, tmp_path: Path) -> None:
    found = []
    for size in (8, 3):
        policy = world.policy()
        task = world.post_training(policy, world.split(world.schedule(8), size), gate="rollout_miss", q_min=0.0)
        found.append(measured(task, tmp_path / str(size), 0.5, 4, policy))
    assert found[0].ratio == pytest.approx(found[1].ratio, rel=1e-5)


def test_a_fit_presses_as_asked_and_goes_on_to_the_same_bits(world: Any, tmp_path: Path, same_fit, stop_at) -> None:
    def pressed(work: Path) -> tuple[Any, Any]:
        policy = world.policy(dropout=0.2)
        task = world.post_training(policy, world.schedule(4, 2), gate="rollout_miss", q_min=0.0, term_norms_every=1)
        found = measured(task, work, 0.25, 6, policy)
        task.arm = replace(task.arm, lambda_=found.lambda_)
        return policy, task

    settings = world.settings(learning_rate=1e-7, checkpoint_seconds=0.0)  # the policy stays where it was measured
    fit(*pressed(tmp_path / "whole"), settings, tmp_path / "whole", seed=3)
    error, report = stop_at(3)
    with pytest.raises(error):
        fit(*pressed(tmp_path / "cut"), settings, tmp_path / "cut", seed=3, report=report)
    fit(*pressed(tmp_path / "cut"), settings, tmp_path / "cut", seed=3)
    same_fit(tmp_path / "whole", tmp_path / "cut")
    rows = [json.loads(line) for line in (tmp_path / "whole" / "steps.jsonl").read_text().splitlines()]
    assert all(row["pressure"] == row["grad_norm_grpo"] / row["grad_norm_nll"] for row in rows)
    assert mean_pressure(rows[:6]) == pytest.approx(0.25, rel=1e-3)


def test_an_arm_with_nothing_admitted_is_refused(world: Any, tmp_path: Path) -> None:
    policy = world.policy()
    with pytest.raises(UserError, match=r"groups admitted in 0 of them"):
        measured(world.post_training(policy, tau_reward=0.0), tmp_path, 0.5, 2, policy)
