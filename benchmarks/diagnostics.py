"""What difficulty and discriminability cost within a step, beyond what GRPO needs anyway.

Three tasks take turns on the same policy, batches and groups:

    plain      NLL + λ · GRPO on every group with an order; the reward is asked of the rollouts alone
    diagnosed  the same loss, to the bit, and both diagnostics: the reward is asked of the logged item and of in-batch
               negatives too, and evidence is gathered twice, of the rewards and of shuffled ones
    gated      AdaGRPO: the same diagnostics, and the backward pass of the admitted groups alone

The parts are timed by themselves, on one step's groups, and their sum is held against the step that has them:

    share = (reward of all - reward of rollouts + negatives + gate + shuffled gate) / diagnosed step

The difference of the whole steps is beside it. It is a small difference of large numbers, and what disturbs a machine
for a moment is more.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adagrpo.config import FitConfig
from adagrpo.config.objective import GateName
from adagrpo.groups.draw import score_codes
from adagrpo.groups.gated import GatedGroups, gate_by_evidence, gather_evidence
from adagrpo.groups.score import Candidates, distinct_candidates, in_batch_negatives, read_rewards, shuffled
from adagrpo.networks import mixed_precision
from adagrpo.rewards import ask_reward
from adagrpo.trainer import Arm, PostTraining
from adagrpo.types import Histories
from benchmarks.compact import STEPS, models_of, q_min_that_admits, stepper
from benchmarks.rows import Row, median_spread, timed_in_turn

__all__ = ["Plain", "diagnostics_share", "measure", "parts"]

ADMISSION = 0.12  # of the gated step: about what a gate admits that chance alone does not explain
Build = Callable[[type[PostTraining], GateName], PostTraining]


class Plain(PostTraining):
    """Draws the same groups and knows no logged item: no negatives, no difficulty, no discriminability, no shadow."""

    def _groups(self, histories: Histories, targets: Tensor, *others: Any) -> GatedGroups:
        return super()._groups(histories, torch.full_like(targets, -1), *others)


ADDED = ("negatives", "gate", "shuffled_gate")  # parts that are there for the diagnostics alone


class Share(NamedTuple):
    """Of each repetition: what the diagnostics cost, as a share of the step that has them. And the facts beside it."""

    values: list[float]
    detail: dict[str, float]


def measure(build: Build, device: torch.device, *, repeats: int = 7) -> Share:
    """Time the three tasks in turn, then the parts.

    Args:
        build: a new task of a class and gate, on a policy of its own; always the same weights and batches.
        device: of the tasks.
        repeats: timings of each, of `STEPS` optimiser steps.
    """
    tasks = {"plain": build(Plain, "all"), "diagnosed": build(PostTraining, "all")}
    tasks["gated"] = build(PostTraining, "rollout_miss")
    pairs = {name: stepper(device, task) for name, task in tasks.items()}
    seconds = dict(zip(tasks, timed_in_turn([steps for _, steps in pairs.values()], repeats=repeats), strict=True))
    admission = {name: sum(admitted) / len(admitted) for name, (admitted, _) in pairs.items()}
    detail = {f"{name}_step_ms": 1000 * median_spread(result)[0] / STEPS for name, result in seconds.items()}
    detail |= {"admission_all": admission["diagnosed"], "admission_gated": admission["gated"]}
    ratios = [gated / plain for plain, gated in zip(seconds["plain"], seconds["gated"], strict=True)]
    detail["gated_over_plain"] = median_spread(ratios)[0]
    differences = [1 - plain / full for plain, full in zip(seconds["plain"], seconds["diagnosed"], strict=True)]
    detail["whole_step_difference"] = median_spread(differences)[0]
    task = build(PostTraining, "rollout_miss")
    with torch.no_grad(), mixed_precision(task.policy):
        works = parts(task)
        result = dict(zip(works, timed_in_turn(list(works.values()), repeats=3 * repeats, warmup=3), strict=True))
    detail |= {f"{name}_ms": 1000 * median_spread(values)[0] for name, values in result.items()}
    step = median_spread(seconds["diagnosed"])[0] / STEPS
    asked_more = [a - b for a, b in zip(result["reward_of_all"], result["reward_of_rollouts"], strict=True)]
    costs = zip(asked_more, *(result[name] for name in ADDED), strict=True)
    return Share([sum(cost) / step for cost in costs], detail)


def parts(task: PostTraining) -> dict[str, Callable[[], Any]]:
    """The work of one step's diagnostics, and of the reward with and without them, on the groups of step 0.

    `target_log_probs` is asked for by an injected target only; the difficulty reads the rollouts that are there.
    """
    task.policy.eval()
    groups = task.begin(0)[0][0].groups
    assert groups is not None, "the first step holds RL samples"
    histories, targets, rollouts, options = groups.histories, groups.targets, groups.rollouts, task.objective
    context, codes = task.policy.encode(histories), task.catalog.codes[targets].unsqueeze(1)
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(len(targets), len(targets), generator=generator).to(targets.device)
    running_std = torch.tensor(task.running_std, device=targets.device)

    def negatives() -> Tensor:
        return in_batch_negatives(targets, histories, draws, options.negatives)

    drawn = negatives()
    scored = groups.scored._replace(negatives=drawn)
    every = distinct_candidates(targets, rollouts.items, drawn)
    nothing = torch.full_like(targets, -1)
    alone = distinct_candidates(nothing, rollouts.items, drawn.new_empty(len(drawn), 0))
    scores = ask_reward(task.reward, histories, every.items)
    permutation = torch.rand(scores.shape, generator=generator).to(scores.device)

    def ask(candidates: Candidates) -> Callable[[], Tensor]:
        return lambda: ask_reward(task.reward, histories, candidates.items)

    def gate(given: Tensor) -> object:
        evidence = gather_evidence(scored, read_rewards(every, given), options, running_std=running_std)
        return gate_by_evidence("rollout_miss", evidence, options)

    return {
        "reward_of_rollouts": ask(alone),
        "reward_of_all": ask(every),
        "negatives": negatives,
        "target_log_probs": lambda: score_codes(task.policy, context, codes, task.catalog, options),
        "gate": lambda: gate(scores),
        "shuffled_gate": lambda: gate(shuffled(every, scores, permutation)),
    }


def diagnostics_share(data: Path, work: Path) -> list[Row]:
    """The cost of both diagnostics as a share of the step, for the compact and for the hybrid policy on Beauty."""
    rows = []
    for kind in ("compact", "hybrid"):
        models = models_of(data, work, kind)
        schedule, weights, reward = models.schedule(FitConfig()), models.run.path("sft", "best"), models.ranker()

        def build(task: type[PostTraining], gate: GateName, q_min: float = 0.95) -> PostTraining:
            options = models.config.objective.with_option("rollout_miss", "q_min", q_min)  # noqa: B023
            arm = Arm(anchored=True, lambda_=1.0, gate=gate)
            policy = models.policy(weights)  # noqa: B023
            return task(policy, models.data.catalog, reward, schedule, options, arm, steps=10**6, validate=dict)  # noqa: B023

        q_min = q_min_that_admits(ADMISSION, lambda q: build(PostTraining, "rollout_miss", q))
        result = measure(lambda task, gate: build(task, gate, q_min), models.data.device)  # noqa: B023
        value, spread = median_spread(result.values)
        name = "diagnostics_share" if kind == "compact" else f"diagnostics_share_{kind}"
        against = "the step that has them, every group admitted"
        rows.append(Row(name, value, "share", spread, "", None, against, result.detail))
    return rows
