"""Post-training: NLL on the logged item, and a GRPO term that a gate admits sample by sample.

    loss = NLL + (λ / B_rl) Σ_b gate_b · GRPO_b

or, in the place of GRPO, one of the losses of `adagrpo.objective.teacher`, on the same groups and behind the same gate;
beside either, with `validity_weight`, a margin that keeps what is no item below what is one.
AdaGRPO (Xu et al. 2026, arXiv 2606.08480); the formulas are in `adagrpo.objective`. Once an optimiser step, and for all
its micro-batches together, groups are drawn, scored and gated (`adagrpo.groups`), so that they are a function of
(weights, seed, step) and not of how the step is cut. Then each micro-batch gets its NLL, in a pass of its own with
dropout, and the surrogate of its admitted groups only, from a context without dropout, which is the one that the
rollouts were drawn from. Where there is no dropout, one pass serves both.

Where we depart: with one iteration over a group the ratio π/π_old is taken against the detached scores, so that
rounding between sampling and scoring is never mistaken for a policy change.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from adagrpo.config import Gate, ObjectiveConfig
from adagrpo.groups.decide import TrueUtility, running_threshold
from adagrpo.groups.draw import score_codes
from adagrpo.groups.gated import GatedGroups, gated_groups, summary
from adagrpo.objective import (
    best_of_n_loss,
    clipped_surrogate,
    gated_sum,
    group_loss,
    kl_k3,
    listwise_distillation,
    validity_margin,
)
from adagrpo.rewards import Reward
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.trainer.batches import BatchSchedule, TrainingBatch, group_step
from adagrpo.trainer.supervised import nll_term
from adagrpo.types import Histories

__all__ = ["Arm", "PostTraining"]


@dataclass(frozen=True)
class Arm:
    """One way to post-train: with or without the NLL anchor, which reward term, how much, and which samples get it."""

    anchored: bool
    lambda_: float
    gate: Gate
    term: Literal["grpo", "distill", "best_of_n"] = "grpo"


class Micro(NamedTuple):
    """A micro-batch, its admitted groups, and the counts of its optimiser step."""

    batch: TrainingBatch
    total: int
    groups: GatedGroups | None  # of the whole step; None without RL samples, which an RL split can give
    admitted: Tensor  # (A,) int64 rows of `groups`
    places: Tensor | None  # (A,) int64, their samples in the batch; None at the ends of histories, which are none


class PostTraining:
    """A `Task` for one arm. `adagrpo.trainer.Supervised` is the arm without any reward.

    Its state: the weights, the running spread of rewards, and the threshold where it runs.
    """

    monitor = "ndcg@10"

    def __init__(
        self,
        policy: nn.Module,
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
        second: Reward | None = None,
    ) -> None:
        if (arm.gate == "oracle") != (true_utility is not None):
            raise ValueError("the oracle gate needs the true utility, and nothing else may have it")
        if (arm.gate == "agreement") != (second is not None):
            raise ValueError("the gate 'agreement' needs a second reward, and nothing else asks one")
        self.policy: Any = policy
        self.starting_policy: Any = copy.deepcopy(policy).eval().requires_grad_(False)
        self.catalog, self.reward, self.objective, self.arm = catalog, reward, objective, arm
        self.true_utility, self.second = true_utility, second
        self.spread = 0.0  # running standard deviation of the rewards of valid rollouts, 0 before the first step
        self.q_min = objective.q_min  # the threshold, which runs where `target_admission` is set
        self.schedule = schedule
        self.stride = objective.num_iterations
        self.steps = steps * self.stride
        self.validate = validate
        self.term_norms_every = term_norms_every
        self._micros: list[Micro] = []

    def users(self, step: int) -> list[int]:
        """Rows of the users of a step."""
        return [int(user) for batch in self.schedule.batches(step // self.stride) for user in batch.users]

    def begin(self, step: int) -> tuple[Sequence[Micro], dict[str, float]]:
        """Draw and gate the groups of a step; with `num_iterations` above 1 they serve that many steps."""
        draw, iteration = divmod(step, self.stride)
        if iteration > 0 and self._micros:
            return self._micros, {}
        self._micros = []  # if what follows fails, none are left of an earlier draw
        device = self.catalog.codes.device
        drawn_at = group_step(self.schedule, draw, self.objective.rl_positions, device)
        total = max(1, sum(int(batch.nll.sum()) for batch in drawn_at.batches))
        joined = drawn_at.joined()
        if joined is None:
            nothing = torch.empty(0, dtype=torch.int64, device=device)
            self._micros = [Micro(batch, total, None, nothing, None) for batch in drawn_at.batches]
            return self._micros, {}
        measure = bool(self.term_norms_every) and step % self.term_norms_every == 0
        groups = self._groups(*joined, drawn_at.generator, measure)
        values = summary(groups) | self._advance(groups)
        first, micros = 0, []
        for batch, part in zip(drawn_at.batches, drawn_at.samples, strict=True):
            admitted = groups.decision.admitted[first : first + len(part.targets)].nonzero().squeeze(1)
            places = None if part.places is None else part.places[admitted]
            micros.append(Micro(batch, total, groups, admitted + first, places))
            first += len(part.targets)
        self._micros = micros
        return self._micros, values

    def loss(self, micro: Micro) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Terms `nll` and, where a group was admitted, the reward term; of GRPO it logs the clip fraction."""
        terms: dict[str, Tensor] = {}
        logged: dict[str, float] = {}
        batch, context = micro.batch, None
        if self.arm.anchored:
            self.policy.train()
            if len(micro.admitted) and micro.places is not None and self.policy.same_in_training:
                context = self.policy.encode(batch.histories, batch.rows, batch.positions)
            terms["nll"] = nll_term(self.policy, batch, micro.total, context)
        if len(micro.admitted):
            self.policy.eval()
            terms[self.arm.term], logged = self._reward_term(micro, None if context is None else context[micro.places])
        if not terms:  # a reward term alone, with nothing admitted: a step that moves nothing
            terms[self.arm.term] = sum(p.sum() for p in self.policy.parameters()) * 0.0
        return terms, logged

    def state(self) -> dict[str, float]:
        """The running spread of rewards, and the threshold where it runs."""
        running = {} if self.objective.target_admission is None else {"q_min": self.q_min}
        return {"spread": self.spread} | running

    def load_state(self, state: Mapping[str, float]) -> None:
        """Take back `state`."""
        self.spread = state["spread"]
        self.q_min = state.get("q_min", self.q_min)

    def _groups(self, histories: Histories, targets: Tensor, generator: torch.Generator, measure: bool) -> GatedGroups:
        """The groups of a step; the starting policy scores them where a term or a measurement asks for it."""
        asked = measure or self.objective.beta > 0 or self.arm.term == "distill"
        return gated_groups(
            self.policy,
            self.catalog,
            self.reward,
            histories,
            targets,
            self.objective.model_copy(update={"q_min": self.q_min}),
            generator,
            gate=self.arm.gate,
            spread=self.spread,
            reference=self.starting_policy if asked else None,
            true_utility=self.true_utility,
            second=self.second,
        )

    def _advance(self, groups: GatedGroups) -> dict[str, float]:
        """Carry on what runs from step to step; what to log of it."""
        self.spread = groups.spread
        if groups.scored.target_codes is None:
            return {}
        options = self.objective.model_copy(update={"q_min": self.q_min})
        following = running_threshold(self.arm.gate, groups.evidence, groups.decision, options)
        if following is None:
            return {}
        logged, self.q_min = {"q_min": self.q_min}, following
        return logged

    def _score(self, policy: Any, context: Any, codes: Tensor) -> Tensor:
        """(B, G, L) log-probabilities under the distribution that the rollouts are drawn from."""
        return score_codes(policy, context, codes, self.catalog, self.objective)

    def _reward_term(self, micro: Micro, context: Any) -> tuple[Tensor, dict[str, float]]:
        """`(λ / B_rl) Σ loss_b` over the admitted groups of a micro-batch, and what to log beside it.

        `context` is theirs, if NLL has encoded them already.
        """
        judged, rows = micro.groups, micro.admitted
        assert judged is not None, "nothing is admitted in a step without RL samples"
        if context is None:
            context = self.policy.encode(Histories(judged.histories.items[rows], judged.histories.lengths[rows]))
        codes = judged.rollouts.codes[rows]
        log_probs = self._score(self.policy, context, codes)
        logged: dict[str, float] = {}

        @functools.cache
        def real() -> Tensor:  # (A, G) whether the codes name an item, whatever it is worth
            return self.catalog.trie.lookup(codes) >= 0

        match self.arm.term:
            case "grpo":
                losses, clipped = self._grpo(log_probs, judged, rows)
                logged["clip_fraction"] = clipped * len(rows) / int(judged.decision.admitted.sum())
            case "distill":
                assert judged.reference is not None, "drawn with the starting policy's log-probabilities"
                weight = self.objective.distill_weight
                assert not isinstance(weight, str), "chosen before training"
                teacher = judged.reference[rows].sum(-1) + weight * judged.rewards[rows]
                items = judged.rollouts.items[rows]
                ignored = real() & (items < 0)  # what is real and yet no item here was left out on purpose
                losses = listwise_distillation(log_probs, teacher, items, codes, ignored)
            case "best_of_n":
                losses = best_of_n_loss(log_probs, judged.rewards[rows], judged.rollouts.valid[rows])
        if self.objective.validity_weight:
            losses = losses + self.objective.validity_weight * validity_margin(
                log_probs, real(), self.objective.validity_depth
            )
        admitted = judged.decision.admitted
        return self.arm.lambda_ * gated_sum(losses, admitted[rows], total=len(admitted)), logged

    def _grpo(self, log_probs: Tensor, judged: GatedGroups, rows: Tensor) -> tuple[Tensor, float]:
        """(A,) GRPO loss of each admitted group, and the share of their codes that the clip has cut."""
        options = self.objective
        old = log_probs.detach() if self.stride == 1 else judged.rollouts.log_probs[rows]
        surrogate = clipped_surrogate(
            log_probs, old, judged.advantages[rows], epsilon=options.epsilon, epsilon_high=options.epsilon_high
        )
        losses = surrogate.loss
        if options.beta > 0 and judged.reference is not None:
            losses = losses + options.beta * kl_k3(log_probs, judged.reference[rows])
        weights = judged.rollouts.weights
        return group_loss(losses, None if weights is None else weights[rows]), float(surrogate.clipped.float().mean())
