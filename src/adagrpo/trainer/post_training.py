"""Post-training: NLL on the logged item, and a GRPO term that a gate admits sample by sample.

    loss = NLL + (λ / B_rl) Σ_b gate_b · GRPO_b

or, in the place of GRPO, another reward term of `adagrpo.objective.terms`, on the same groups and behind the same gate.
AdaGRPO (Xu et al. 2026, arXiv 2606.08480); the formulas are in `adagrpo.objective`. Once an optimiser step, and for all
its micro-batches together, groups are drawn, judged and gated (`adagrpo.trainer.judging`); then each micro-batch
gets its NLL, in a pass of its own with dropout, and the surrogate of its admitted groups only, from a context
without dropout, which is the one that the rollouts were drawn from. Where there is no dropout, one pass serves both.

Where we depart: with one iteration over a group the ratio π/π_old is taken against the detached scores, so that
rounding between sampling and scoring is never mistaken for a policy change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adagrpo.config import ObjectiveConfig
from adagrpo.data.sequences import pad
from adagrpo.objective import gated_sum
from adagrpo.objective.terms import TERMS, TermInputs
from adagrpo.rewards import Reward
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.trainer.batches import BatchSchedule, TrainingBatch, keyed_generator, truncate
from adagrpo.trainer.groups import Judged, stack
from adagrpo.trainer.judging import Arm, GroupJudge, TrueUtility
from adagrpo.trainer.supervised import nll_term
from adagrpo.types import Histories

__all__ = ["PostTraining"]


class Samples(NamedTuple):
    """The RL samples of a micro-batch."""

    histories: Histories  # (N, T)
    targets: Tensor  # (N,) -1 at the ends of histories, where no training interaction follows
    places: Tensor | None  # (N,) int64, which samples of the batch they are; None at the ends, which are none


class Micro(NamedTuple):
    """A micro-batch, its admitted groups, and the counts of its optimiser step."""

    batch: TrainingBatch
    total: int
    judged: Judged | None  # None in a step without RL samples, which an RL split can give
    admitted: Tensor  # (A,) int64 rows of `judged`
    places: Tensor | None  # (A,) int64, their samples in the batch; None at the ends of histories, which are none


class PostTraining(GroupJudge):
    """A `Task` for one arm. `adagrpo.trainer.Supervised` is the arm without any reward."""

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
    ) -> None:
        super().__init__(policy, catalog, reward, objective, arm, true_utility)
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
        """Draw and judge the groups of a step; with `num_iterations` above 1 they serve that many steps."""
        draw, iteration = divmod(step, self.stride)
        if iteration > 0 and self._micros:
            return self._micros, {}
        self._micros = []  # if what follows fails, none are left of an earlier draw
        device = self.catalog.codes.device
        batches = [batch.to(device) for batch in self.schedule.batches(draw)]
        generator = keyed_generator(self.schedule.seed, draw, 1)
        samples = [self._samples(batch, generator) for batch in batches]
        total = max(1, sum(int(batch.nll.sum()) for batch in batches))
        if not any(len(part.targets) for part in samples):
            nothing = torch.empty(0, dtype=torch.int64, device=device)
            self._micros = [Micro(batch, total, None, nothing, None) for batch in batches]
            return self._micros, {}
        histories, targets = stack([part.histories for part in samples]), torch.cat([part.targets for part in samples])
        measure = bool(self.term_norms_every) and step % self.term_norms_every == 0
        with torch.no_grad():
            judged, values = self._judge(histories, targets, generator, measure)
        first = 0
        self._micros = []
        for batch, part in zip(batches, samples, strict=True):
            admitted = judged.decision.admitted[first : first + len(part.targets)].nonzero().squeeze(1)
            places = None if part.places is None else part.places[admitted]
            self._micros.append(Micro(batch, total, judged, admitted + first, places))
            first += len(part.targets)
        return self._micros, values

    def loss(self, micro: Micro) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Terms `nll` and, where a group was admitted, the reward term by its name, with what that logs."""
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
        """The running spread of rewards."""
        return {"spread": self.spread}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Take back `state`."""
        self.spread = state["spread"]

    def _samples(self, batch: TrainingBatch, generator: torch.Generator) -> Samples:
        """Of the RL samples that a history has, one at random, the last, or all; or its end."""
        if self.objective.rl_positions == "end":
            ends = pad(self.schedule.training, batch.users, self.schedule.max_history)
            device = batch.targets.device
            users = torch.from_numpy(batch.users).to(device)
            whole = Histories(ends.items.to(device), ends.lengths.to(device), users)
            return Samples(whole, torch.full_like(whole.lengths, -1), None)
        samples = batch.rl.nonzero().squeeze(1)
        if self.objective.rl_positions != "all":
            histories = len(batch.histories.lengths)
            counts = torch.bincount(batch.rows[samples], minlength=histories)
            if self.objective.rl_positions == "last":
                chosen = counts - 1
            else:
                uniforms = torch.rand(histories, generator=generator, dtype=torch.float64).to(counts.device)
                chosen = (uniforms * counts).long()
            first = counts.cumsum(0) - counts  # samples are listed row by row
            samples = samples[(first + chosen)[counts > 0]]
        found = truncate(batch.histories, batch.rows[samples], batch.positions[samples])
        return Samples(found, batch.targets[samples], samples)

    def _reward_term(self, micro: Micro, context: Any) -> tuple[Tensor, dict[str, float]]:
        """`(λ / B_rl) Σ loss_b` over the admitted groups of a micro-batch, and what to log beside it.

        `context` is theirs, if NLL has encoded them already.
        """
        judged, rows = micro.judged, micro.admitted
        assert judged is not None, "nothing is admitted in a step without RL samples"
        if context is None:
            context = self.policy.encode(Histories(judged.histories.items[rows], judged.histories.lengths[rows]))
        codes = judged.rollouts.codes[rows]
        log_probs = self._score(self.policy, context, codes)
        groups = TermInputs(
            log_probs,
            # with one iteration a group is scored by the policy that it was drawn from
            log_probs.detach() if self.stride == 1 else judged.rollouts.log_probs[rows],
            judged.rewards[rows],
            judged.rollouts.items[rows],
            codes,
            self.catalog.trie.lookup(codes) >= 0,
            None if judged.reference is None else judged.reference[rows],
        )
        losses, logged = TERMS[self.arm.term].loss(groups, **self.objective.of_term(self.arm.term))
        admitted = judged.decision.admitted
        share = len(rows), int(admitted.sum())  # of this micro-batch in what the step logs
        return (
            self.arm.lambda_ * gated_sum(losses, admitted[rows], total=len(admitted)),
            {name: float(value) * share[0] / share[1] for name, value in logged.items()},
        )
