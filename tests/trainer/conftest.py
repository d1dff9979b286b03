"""A world small enough to check by loops: 30 users, 24 items of three codes, a reward that is a table."""

from __future__ import annotations

import copy
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from adagrpo.config import FitConfig, ObjectiveConfig
from adagrpo.groups import draw, gated, score
from adagrpo.objective import group_advantages
from adagrpo.policies.compact import CompactPolicy
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.trainer import Arm, BatchSchedule, PostTraining, Supervised, TrainingBatch
from adagrpo.types import Histories, Ragged

SIZES = (4, 3, 3)
ITEMS, USERS, MAX_HISTORY = 24, 30, 5


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Float32 on one thread; accelerate remembers its precision for the whole process, so it is told to forget."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr("adagrpo.trainer.loop.autocast_dtype", lambda device: None)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(threads)


def ragged(rows: list[list[int]]) -> Ragged:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return Ragged(np.array([item for row in rows for item in row], np.int32), offsets)


class TableReward:
    """A number for each (last item of the history, item), and NaN where there is nothing to score."""

    def __init__(self, table: Tensor) -> None:
        self.table = table  # (V, V)
        self.asked: list[Tensor] = []

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        self.asked.append(items)
        last = histories.items.gather(1, histories.lengths.unsqueeze(1) - 1)
        return torch.where(items >= 0, self.table[last, items.clamp(min=0)], torch.nan)


class SplitSchedule:
    """The optimiser steps of another schedule, each cut into micro-batches of `size` histories."""

    def __init__(self, inner: BatchSchedule, size: int) -> None:
        self.inner, self.size = inner, size
        self.training, self.seed, self.max_history = inner.training, inner.seed, inner.max_history

    def batches(self, step: int) -> list[TrainingBatch]:
        users = np.concatenate([batch.users for batch in self.inner.batches(step)])
        return [self.inner._batch(users[first : first + self.size]) for first in range(0, len(users), self.size)]


class World:
    """Builds policies, schedules and tasks that fit together."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        space = torch.cartesian_prod(*map(torch.arange, SIZES))
        self.catalog = Catalog.from_codes(space[torch.randperm(len(space), generator=generator)[:ITEMS]], SIZES)
        self.reward = TableReward(torch.randn(ITEMS, ITEMS, generator=generator))
        draw = np.random.default_rng(0)
        lengths = [1, 2, 3, 6, 7, 9] * (USERS // 6)
        self.rows = [draw.integers(0, ITEMS, length).tolist() for length in lengths]
        self.training = ragged(self.rows)
        self.ragged = ragged

    def policy(self, dropout: float = 0.0, spread: float = 0.3) -> CompactPolicy:
        """A new policy, always the same one; `spread` takes it away from near uniform probabilities."""
        policy = CompactPolicy(
            self.catalog.codes,
            SIZES,
            width=16,
            layers=1,
            heads=2,
            decoder_hidden=16,
            max_history=MAX_HISTORY,
            dropout=dropout,
        )
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
        return policy

    def schedule(self, batch_size: int = 8, accumulation: int = 1, training: Ragged | None = None) -> BatchSchedule:
        return BatchSchedule(training or self.training, MAX_HISTORY, batch_size, accumulation, seed=5)

    def split(self, schedule: BatchSchedule, size: int) -> Any:
        return SplitSchedule(schedule, size)

    def settings(self, **changes: Any) -> FitConfig:
        return FitConfig(**({"learning_rate": 1e-2, "validations": 4, "checkpoint_seconds": 1e9} | changes))

    def validator(self, policy: CompactPolicy) -> Callable[[], dict[str, float]]:
        """A metric that moves with the weights: the mean log-probability of each user's last item."""
        rows = [row for row in self.rows if len(row) > 1]
        items = torch.tensor([(row[:-1][-MAX_HISTORY:] + [0] * MAX_HISTORY)[:MAX_HISTORY] for row in rows])
        histories = Histories(items, torch.tensor([min(len(row) - 1, MAX_HISTORY) for row in rows]))
        codes = self.catalog.codes[[row[-1] for row in rows]].unsqueeze(1)

        def validate() -> dict[str, float]:
            log_probs = policy.score(policy.encode(histories), codes)
            return {"ndcg@10": log_probs.mean().item(), "least": log_probs.min().item()}

        return validate

    def supervised(self, policy: CompactPolicy, schedule: Any = None, steps: int = 7) -> Supervised:
        return Supervised(
            policy,
            self.catalog.codes,
            schedule or self.schedule(),
            steps=steps,
            validate=self.validator(policy),
        )

    def post_training(
        self,
        policy: CompactPolicy,
        schedule: Any = None,
        *,
        gate: Any = "adagrpo",
        lambda_: float = 1.0,
        anchored: bool = True,
        term: Any = "grpo",
        steps: int = 7,
        term_norms_every: int = 0,
        reward: Any = None,
        true_utility: Any = None,
        **objective: Any,
    ) -> PostTraining:
        defaults = {"num_generations": 6, "negatives": 3, "q_min": 0.5, "tau": 0.5, "tau_reward": 0.8, "rho": 0.0}
        return PostTraining(
            policy,
            self.catalog,
            reward or copy.copy(self.reward),
            schedule or self.schedule(),
            ObjectiveConfig.model_validate(defaults | objective),
            Arm(anchored, lambda_, gate, term),
            steps=steps,
            validate=self.validator(policy),
            term_norms_every=term_norms_every,
            true_utility=true_utility,
        )

    @staticmethod
    def draw(task, step: int = 0):
        """The groups of a step, all its micro-batches, and what it logs."""
        task.policy.eval()
        micros, values = task.begin(step)
        return micros[0].groups, micros, values

    @staticmethod
    def advantages(task, judged) -> Tensor:  # (B, G)
        """What GRPO makes of the groups' rewards."""
        options = task.objective.of_term("grpo")
        arguments = {name: options[name] for name in ("invalid_penalty", "scale_rewards")}
        return group_advantages(judged.rewards, judged.rollouts.valid, **arguments)

    @staticmethod
    def history_of(judged, b: int) -> list[int]:
        return judged.histories.items[b, : judged.histories.lengths[b]].tolist()

    @staticmethod
    def walk(policy, history: list[int], codes: list[int], temperature: float) -> list[Tensor]:
        """Log-probability of each code, one code of one hypothesis at a time."""
        state = policy.start(policy.encode(Histories(torch.tensor([history]), torch.tensor([len(history)]))))
        scores = []
        for code in codes:
            scores.append((policy.logits(state)[0, 0] / temperature).log_softmax(-1)[code])
            state = policy.advance(state, torch.tensor([[0]]), torch.tensor([[code]]))
        return scores

    @staticmethod
    def slow_advantages(rewards: list[float | None], penalty: float) -> list[float]:
        valid = [reward for reward in rewards if reward is not None]
        mean, deviation = (statistics.fmean(valid), statistics.pstdev(valid)) if valid else (0.0, 0.0)
        return [-penalty if reward is None else (reward - mean) / (deviation + 1e-4) for reward in rewards]


@pytest.fixture
def world() -> World:
    return World()


class Stop(Exception):
    """Raised by a report callback to interrupt a fit."""


@pytest.fixture
def stop_at() -> Callable[[int], tuple[type[Exception], Callable[[int, int, Mapping[str, float]], None]]]:
    """The exception, and a report callback that raises it after a step."""

    def make(step: int) -> tuple[type[Exception], Callable[[int, int, Mapping[str, float]], None]]:
        def report(now: int, steps: int, values: Mapping[str, float]) -> None:
            if now == step:
                raise Stop

        return Stop, report

    return make


@pytest.fixture
def read_fit() -> Callable[[Path], dict[str, Any]]:
    """All that a finished fit left: weights of best and final, and both logs."""
    from safetensors.torch import load_file

    def read(work: Path) -> dict[str, Any]:
        return {
            "weights": {name: load_file(work / name / "model.safetensors") for name in ("best", "final")},
            "steps": {name: (work / name / "checkpoint.json").read_text() for name in ("best", "final")},
            "logs": {name: (work / name).read_text() for name in ("steps.jsonl", "validation.jsonl")},
        }

    return read


@pytest.fixture
def same_fit(read_fit: Callable[[Path], dict[str, Any]]) -> Callable[[Path, Path], None]:
    """Assert that two fits left the same bits."""

    def check(one: Path, other: Path) -> None:
        first, second = read_fit(one), read_fit(other)
        assert first["logs"] == second["logs"] and first["steps"] == second["steps"]
        for name, weights in first["weights"].items():
            assert weights.keys() == second["weights"][name].keys()
            for key, tensor in weights.items():
                assert torch.equal(tensor, second["weights"][name][key]), f"{name}: {key}"

    return check


SPIED = {
    "inject_target": draw,
    "in_batch_negatives": score,
    "shuffled": score,
    "rollout_miss": gated,
    "degenerate_groups": gated,
    "gather_evidence": gated,
}


@pytest.fixture
def spy(monkeypatch) -> dict[str, list[tuple[tuple[Any, ...], dict[str, Any], Any]]]:
    """Arguments and results of the pure functions that the four steps of a group call."""
    calls: dict[str, list[Any]] = defaultdict(list)

    def watch(name: str) -> None:
        home = SPIED[name]
        original = getattr(home, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            calls[name].append((args, kwargs, result))
            return result

        monkeypatch.setattr(home, name, wrapper)

    for name in SPIED:
        watch(name)
    return calls
