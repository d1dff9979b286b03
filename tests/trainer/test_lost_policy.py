"""A policy that is lost while it is trained is noticed, said once, stopped, and its best checkpoint is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from adagrpo.config import FitConfig
from adagrpo.errors import ServiceError
from adagrpo.objective import GroupSummary
from adagrpo.trainer import Watched, fit
from adagrpo.trainer.task import Watch, fallen_in_validation


class Falling:
    """A task on `nn.Linear(1, 1)` that logs a scripted share of invalid rollouts and scripted HR@10."""

    monitor = "ndcg@10"
    term_norms_every = 0
    stride = 1

    def __init__(self, invalid: Sequence[float | None], hits: Sequence[float]) -> None:
        self.model, self.steps = nn.Linear(1, 1), len(invalid)
        self.invalid, self.hits, self.calls, self.fails_at = invalid, hits, 0, -1

    def users(self, step: int) -> Sequence[int]:
        return [step]

    def begin(self, step: int) -> tuple[Sequence[int], dict[str, float]]:
        share = self.invalid[step]
        return [step], {} if share is None else {"invalid_share": share}

    def loss(self, micro: int) -> tuple[dict[str, Tensor], dict[str, float]]:
        return {"one": self.model(torch.ones(1)).sum()}, {}

    def validate(self) -> dict[str, float]:
        if self.calls == self.fails_at:
            raise ServiceError("the reward cannot be asked")
        value = self.hits[min(self.calls, len(self.hits) - 1)]
        self.calls += 1
        return {"hr@10": value, "ndcg@10": value}

    def state(self) -> dict[str, float]:
        return {"calls": float(self.calls)}

    def load_state(self, state: Mapping[str, float]) -> None:
        self.calls = int(state["calls"])


def fallen(tmp_path, task, **options):
    said: list[tuple[int, str]] = []
    watched = Watched(1000, lambda step, why: said.append((step, why)), **options)
    result = fit(task.model, task, FitConfig(validations=2), tmp_path, seed=0, watched=watched)
    return result, said


def test_three_steps_running_with_half_the_valid_rollouts_end_a_fit(tmp_path):
    task = Falling([0.2, 0.2, 0.61, 0.61, 0.5, 0.61, 0.61, 0.7, 0.7, 0.7], [0.4, 0.3, 0.5, 0.5])
    result, said = fallen(tmp_path, task)
    # two low steps, then one that is not; steps 6 to 8 are the three
    assert said == [(8, "rollouts that name an item fell from 80.0 % to 30.0 %")]
    assert (result.steps, result.best_step) == (8, 0)
    # validated where it ends, which is no candidate for the best, however high its lists are
    assert [(row["step"], row["hr@10"]) for row in result.validation] == [(0, 0.4), (5, 0.3), (8, 0.5)]
    assert json.loads((tmp_path / "lost.json").read_text()) == {"step": 8, "why": said[0][1]}
    assert json.loads((tmp_path / "best" / "checkpoint.json").read_text()) == {"step": 0}
    assert json.loads((tmp_path / "final" / "checkpoint.json").read_text()) == {"step": 8}


def test_a_validation_below_half_of_the_start_ends_a_fit(tmp_path):
    result, said = fallen(tmp_path, Falling([0.2] * 8, [0.4, 0.1, 0.1]))
    assert said == [(4, "validation HR@10 fell from 40.0 % to 10.0 %")] and result.steps == 4


def test_who_asks_for_it_trains_on_and_it_is_said_once(tmp_path):
    result, said = fallen(tmp_path, Falling([0.2] + [0.9] * 7, [0.4, 0.1, 0.1]), go_on=True)
    assert result.steps == 8 and [step for step, _ in said] == [4]
    assert json.loads((tmp_path / "lost.json").read_text())["step"] == 4


def test_a_lost_policy_is_no_candidate_at_a_step_without_groups_of_its_own_either(tmp_path):
    """Of two iterations over a group the second logs no share; validations are after it."""
    shares = [share for low in (0.2, 0.7, 0.7, 0.7, 0.7, 0.2) for share in (low, None)]
    task, watched = Falling(shares, [0.4, *[0.3] * 4, 0.5, 0.5, 0.45]), Watched(1000, lambda step, why: None, True)
    result = fit(task.model, task, FitConfig(validations=6), tmp_path, seed=0, watched=watched)
    measured = {int(row["step"]): row["hr@10"] for row in result.validation}
    assert measured == {0: 0.4, 2: 0.3, 4: 0.3, 6: 0.3, 7: 0.3, 8: 0.5, 10: 0.5, 12: 0.45}
    assert result.best_step == 12  # lost from step 7 to step 10, and found again


def test_a_fit_that_is_not_watched_goes_to_its_end(tmp_path):
    task = Falling([0.2] + [0.9] * 7, [0.4, 0.1, 0.1])
    assert fit(task.model, task, FitConfig(validations=2), tmp_path, seed=0).steps == 8
    assert not (tmp_path / "lost.json").exists()


def test_an_interrupted_fit_remembers_the_low_steps(tmp_path, stop_at):
    shares = [0.2, 0.7, 0.7, 0.7, 0.7, 0.7]
    stop, report = stop_at(3)
    task, settings = Falling(shares, [0.4]), FitConfig(validations=0, checkpoint_seconds=0)
    said: list[int] = []
    watched = Watched(1000, lambda step, why: said.append(step))
    with pytest.raises(stop):
        fit(task.model, task, settings, tmp_path, seed=0, report=report, watched=watched)
    again = Falling(shares, [0.4])
    assert fit(again.model, again, settings, tmp_path, seed=0, watched=watched).steps == 4 and said == [4]


@pytest.mark.parametrize(
    ("shares", "hits", "fails_at"),
    [
        ([0.2] * 8, [0.4, 0.1], 1),
        ([0.2, 0.2, *[0.7] * 6], [0.4, 0.4], 1),
        ([0.2, 0.2, *[0.7] * 6], [0.4, 0.4], 2),  # of step 5, where the rollouts say that the policy is lost
    ],
)
def test_a_validation_that_failed_is_made_up_for_and_says_the_same(tmp_path, shares, hits, fails_at):
    """The reward could not be asked then; the same command goes on, and ends where it would have."""
    whole, said = fallen(tmp_path / "whole", Falling(shares, hits))
    again: list[tuple[int, str]] = []
    watched = Watched(1000, lambda step, why: again.append((step, why)))
    task = Falling(shares, hits)
    task.fails_at = fails_at
    with pytest.raises(ServiceError):
        fit(task.model, task, FitConfig(validations=2), tmp_path / "torn", seed=0, watched=watched)
    more = Falling(shares, hits)
    result = fit(more.model, more, FitConfig(validations=2), tmp_path / "torn", seed=0, watched=watched)
    assert said and again == said and result.steps == whole.steps


def test_what_a_made_up_validation_chose_outlives_the_next_interruption(tmp_path, stop_at):
    """Its row is in `validation.jsonl`, so that it is not made up for a second time."""
    settings = FitConfig(validations=2, checkpoint_seconds=1e9)
    failing = Falling([0.2] * 8, [0.4, 0.5, 0.3])
    failing.fails_at = 1
    with pytest.raises(ServiceError):
        fit(failing.model, failing, settings, tmp_path, seed=0)
    stop, report = stop_at(5)
    second = Falling([0.2] * 8, [0.4, 0.5, 0.3])
    with pytest.raises(stop):
        fit(second.model, second, settings, tmp_path, seed=0, report=report)
    third = Falling([0.2] * 8, [0.4, 0.5, 0.3])
    result = fit(third.model, third, settings, tmp_path, seed=0)
    assert [(row["step"], row["hr@10"]) for row in result.validation] == [(0, 0.4), (4, 0.5), (8, 0.3)]
    assert result.best_step == 4


def test_a_share_that_was_small_at_the_start_says_nothing():
    watch = Watch()
    assert [watch.after_step(GroupSummary(invalid_share=share)) for share in (0.95, 1.0, 1.0, 1.0, 1.0)] == [None] * 5
    assert watch.after_step(GroupSummary()) is None  # a step without groups


@pytest.mark.parametrize(
    ("start", "now", "lost"),
    [
        ((0.40, 0.1), (0.19, 0.1), True),
        ((0.40, 0.1), (0.21, 0.1), False),  # above half
        ((0.02, 0.1), (0.005, 0.1), False),  # 20 hits and 5: 15 is not above 3 sqrt(25)
        ((0.05, 0.1), (0.01, 0.1), True),  # 50 and 10: 40 is above 3 sqrt(60) = 23.2
        ((0.40, 0.2), (0.40, 0.7), True),  # 80 % of the codes named an item, 30 % do
        ((0.40, 0.2), (0.41, 0.7), False),  # and the lists are better
        ((0.40, 0.95), (0.40, 1.0), False),
    ],
)
def test_what_counts_as_lost_in_a_validation(start, now, lost):
    before, after = ({"hr@10": hits, "invalid_samples": share} for hits, share in (start, now))
    assert (fallen_in_validation(before, after, 1000) is not None) == lost
