"""Post-training: NLL on the logged item plus a gated GRPO term.

    loss = NLL + (λ / B_rl) Σ_b gate_b · GRPO_b

AdaGRPO (Xu et al. 2026, arXiv 2606.08480); other terms of `adagrpo.objective.terms` can replace GRPO. NLL uses dropout;
rollouts and the reward term do not. Departure: with one iteration, π/π_old is taken against the detached scores.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adagrpo.config import ObjectiveConfig
from adagrpo.groups.draw import score_codes
from adagrpo.groups.gated import GatedGroups, TrueUtility, gated_groups, summary
from adagrpo.objective import GATES, gated_sum
from adagrpo.objective.terms import TERMS, TermInputs
from adagrpo.policies.policy import Context, Policy
from adagrpo.rewards import Reward
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.trainer.batches import BatchSchedule, TrainingBatch, group_step
from adagrpo.trainer.processes import Processes
from adagrpo.trainer.task import Task
from adagrpo.types import Histories


def nll_term(policy: Policy[Any, Any], batch: TrainingBatch, total: int, context: Context | None = None) -> Tensor:
    """Return the share of the mean NLL over `total` positions, nats per code; `context` is of all samples."""
    if context is None:
        context = policy.encode(batch.histories, batch.rows[batch.nll], batch.positions[batch.nll])
    else:
        context = context[batch.nll]
    return policy.supervised_loss(context, batch.targets[batch.nll]).sum() / total


class Supervised(Task[tuple[TrainingBatch, int]]):
    """A `Task` that minimises NLL."""

    def __init__(
        self,
        policy: Policy[Any, Any],  # changed in place
        codes: Tensor,  # (V, L) of the catalogue
        schedule: BatchSchedule,
        *,
        steps: int,
        validate: Callable[[], dict[str, float]],
    ) -> None:
        self.policy, self.codes, self.schedule, self.steps, self.validate = policy, codes, schedule, steps, validate

    def begin(self, step: int) -> tuple[Sequence[tuple[TrainingBatch, int]], dict[str, float]]:
        """Return the micro-batches of a step, each with the step's number of NLL positions."""
        batches = [batch.to(self.codes.device) for batch in self.schedule.batches(step)]
        total = max(1, sum(int(batch.nll.sum()) for batch in batches))
        return [(batch, total) for batch in batches], {}

    def loss(self, micro: tuple[TrainingBatch, int]) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return the term `nll`."""
        self.policy.train()
        return {"nll": nll_term(self.policy, *micro)}, {}


PART = 256  # samples of the stated anchor that are scored at a time


@dataclass(frozen=True)
class Arm:
    """A post-training variant: anchor, reward term, its weight and its gate."""

    anchored: bool
    lambda_: float
    gate: str  # of `adagrpo.objective.gates`
    term: str = "grpo"  # of `adagrpo.objective.terms`


class Micro(NamedTuple):
    """A micro-batch and its admitted groups."""

    batch: TrainingBatch
    total: int
    groups: GatedGroups | None  # of the whole step; None without RL samples, which an RL split can give
    admitted: Tensor  # (A,) int64 rows of `groups`
    indices: Tensor | None  # (A,) int64, indices of their samples in the batch; None at the ends of histories


class PostTraining(Task[Micro]):
    """A `Task` for one arm; its state is the running standard deviation of rewards."""

    def __init__(
        self,
        policy: Policy[Any, Any],
        catalog: Catalog,
        reward: Reward,
        schedule: BatchSchedule,
        objective: ObjectiveConfig,
        arm: Arm,
        *,
        steps: int,
        validate: Callable[[], dict[str, float]],
        term_norms_every: int = 0,
        true_utility: TrueUtility | None = None,
        shared_by: Processes | None = None,
    ) -> None:
        if GATES[arm.gate].reads_truth != (true_utility is not None):
            raise ValueError("the true utility: a gate that reads it needs it, and nothing else may have it")
        self.policy = policy
        self.starting_policy = copy.deepcopy(policy).eval().requires_grad_(False)
        self.catalog, self.reward, self.objective, self.arm = catalog, reward, objective, arm
        self.true_utility = true_utility
        self.running_std = 0.0  # running standard deviation of the rewards of valid rollouts, 0 before the first step
        self.processes = shared_by or Processes()
        self.schedule = schedule
        self.stride = objective.num_iterations
        self.steps = steps * self.stride
        self.validate = validate
        self.term_norms_every = term_norms_every
        self._micros: list[Micro] = []

    def begin(self, step: int) -> tuple[Sequence[Micro], dict[str, float]]:
        """Draw and gate the groups of a step, reused for `num_iterations` steps."""
        draw, iteration = divmod(step, self.stride)
        if iteration > 0 and self._micros:
            return self._micros, {}
        self._micros = []  # if what follows fails, none are left of an earlier draw
        device = self.catalog.codes.device
        drawn_at = group_step(self.schedule, draw, self.objective, device)
        total = max(1, sum(int(batch.nll.sum()) for batch in drawn_at.batches))
        joined = drawn_at.joined()
        if joined is None:
            nothing = torch.empty(0, dtype=torch.int64, device=device)
            self._micros = [Micro(batch, total, None, nothing, None) for batch in drawn_at.batches]
            return self._micros, {}
        measure = bool(self.term_norms_every) and step % self.term_norms_every == 0
        rows = self.processes.rows_of([len(part.targets) for part in drawn_at.samples])
        term = self.arm.term
        needs_reference = measure or TERMS[term].needs_reference(self.objective.of_term(term))
        groups = gated_groups(
            self.policy,
            self.catalog,
            self.reward,
            *joined,
            self.objective,
            drawn_at.generator,
            gate=self.arm.gate,
            running_std=self.running_std,
            reference=self.starting_policy if needs_reference else None,
            true_utility=self.true_utility,
            division=partial(self.processes.divide, rows),
        )
        self.running_std = groups.running_std
        first, micros = 0, []
        for batch, part in zip(drawn_at.batches, drawn_at.samples, strict=True):
            admitted = groups.decision.admitted[first : first + len(part.targets)].nonzero().squeeze(1)
            indices = None if part.indices is None else part.indices[admitted]
            micros.append(Micro(batch, total, groups, admitted + first, indices))
            first += len(part.targets)
        self._micros = micros
        return self._micros, summary(groups).to_json()

    def loss(self, micro: Micro) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return `nll` and, if a group was admitted, the reward term by its name."""
        terms: dict[str, Tensor] = {}
        batch, context = micro.batch, None
        if self.arm.anchored:
            self.policy.train()
            if len(micro.admitted) and micro.indices is not None and self.policy.same_in_training:
                context = self.policy.encode(batch.histories, batch.rows, batch.positions)
            terms["nll"] = nll_term(self.policy, batch, micro.total, context)
        if not len(micro.admitted):
            if not terms:  # a reward term alone: a step that moves nothing
                terms[self.arm.term] = torch.stack([p.sum() for p in self.policy.parameters()]).sum() * 0.0
            return terms, {}
        self.policy.eval()
        groups, rows = micro.groups, micro.admitted
        assert groups is not None, "nothing is admitted in a step without RL samples"
        if context is None:
            context = self.policy.encode(Histories(groups.histories.items[rows], groups.histories.lengths[rows]))
        else:
            context = context[micro.indices]
        codes = groups.rollouts.codes[rows]
        log_probs = score_codes(self.policy, context, codes, self.catalog, self.objective)
        inputs = TermInputs(
            log_probs,
            # with one iteration a group is scored by the policy that it was drawn from
            log_probs.detach() if self.stride == 1 else groups.rollouts.log_probs[rows],
            groups.rewards[rows],
            groups.rollouts.items[rows],
            codes,
            self.catalog.trie.lookup(codes) >= 0,
            None if groups.reference is None else groups.reference[rows],
            groups.targets[rows],
        )
        losses, logged = TERMS[self.arm.term].loss(inputs, **self.objective.of_term(self.arm.term))
        admitted = groups.decision.admitted
        # (λ / B_rl) Σ loss_b over admitted groups
        terms[self.arm.term] = self.arm.lambda_ * gated_sum(losses, admitted[rows], total=len(admitted))
        share = len(rows), int(admitted.sum())  # of this micro-batch in what the step logs
        return terms, {name: float(value.detach()) * share[0] / share[1] for name, value in logged.items()}

    @property
    def term(self) -> str:
        """Name of the reward term."""
        return self.arm.term

    def stated_anchor(self, micro: Micro) -> Iterator[Tensor]:
        """Yield parts of the mean of -(1/L) Σ log π, only measured, if the anchor is another loss."""
        if self.policy.trains_on_nll or not self.arm.anchored:
            return
        self.policy.train()
        batch = micro.batch
        context = self.policy.encode(batch.histories, batch.rows[batch.nll], batch.positions[batch.nll])
        codes = self.catalog.codes[batch.targets[batch.nll]].unsqueeze(1)  # (N, 1, L)
        for first in range(0, len(codes), PART):
            part = slice(first, first + PART)
            yield -self.policy.score(context[part], codes[part]).mean(-1).sum() / micro.total

    def state(self) -> dict[str, float]:
        """Return the running standard deviation of rewards."""
        return {"spread": self.running_std}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Restore `state`."""
        self.running_std = state["spread"]
