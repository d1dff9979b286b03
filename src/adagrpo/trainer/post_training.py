"""Post-training: NLL on the logged item, and a GRPO term that a gate admits sample by sample.

    loss = NLL + (λ / B_rl) Σ_b gate_b · GRPO_b

or, in the place of GRPO, one of the losses of `adagrpo.objective.teacher`, on the same groups and behind the same gate;
beside either, with `validity_weight`, a margin that keeps what is no item below what is one.
AdaGRPO (Xu et al. 2026, arXiv 2606.08480); the formulas are in `adagrpo.objective`. Once an optimiser step, and for all
its micro-batches together, groups are drawn, judged and gated without gradients (`_judge`); then each micro-batch
gets its NLL, in a pass of its own with dropout, and the surrogate of its admitted groups only, from a context
without dropout, which is the one that the rollouts were drawn from. Where there is no dropout, one pass serves both.

Where we depart: the rollouts of a step are a function of (weights, seed, step), not of how the step is cut into
micro-batches; and with one iteration over a group the ratio π/π_old is taken against the detached scores, so that
rounding between sampling and scoring is never mistaken for a policy change.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from adagrpo.config import Gate, ObjectiveConfig
from adagrpo.data.sequences import pad
from adagrpo.decoding import score_sequences
from adagrpo.objective import (
    GateDecision,
    all_gate,
    best_of_n_loss,
    clipped_surrogate,
    degenerate_groups,
    gated_sum,
    group_advantages,
    group_loss,
    kl_k3,
    listwise_distillation,
    none_gate,
    oracle_gate,
    pairwise_agreement,
    rollout_entropy,
    rollout_miss,
    target_nll,
    target_rank,
    validity_margin,
)
from adagrpo.rewards import (
    Reward,
    candidate_scores,
    constant_share,
    distinct_candidates,
    in_batch_negatives,
    read_rewards,
    shuffled,
)
from adagrpo.rollouts import beam_rollouts, draw_rollouts, inject_target
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.trainer.batches import BatchSchedule, TrainingBatch, keyed_generator, truncate
from adagrpo.trainer.gating import decide, gather_evidence
from adagrpo.trainer.groups import Judged, stack, summary
from adagrpo.trainer.supervised import nll_term
from adagrpo.types import Histories, Rollouts

__all__ = ["Arm", "PostTraining", "TrueUtility"]

# (B,) users, (B,) logged items and (B, N) items to the (B, N) utility of those just before the logged item was chosen
TrueUtility = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Arm:
    """One way to post-train: with or without the NLL anchor, which reward term, how much, and which samples get it."""

    anchored: bool
    lambda_: float
    gate: Gate
    term: Literal["grpo", "distill", "best_of_n"] = "grpo"


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


class PostTraining:
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
        if (arm.gate == "oracle") != (true_utility is not None):
            raise ValueError("the oracle gate needs the true utility, and nothing else may have it")
        self.policy: Any = policy
        self.starting_policy: Any = copy.deepcopy(policy).eval().requires_grad_(False)
        self.catalog, self.reward, self.schedule, self.objective, self.arm = catalog, reward, schedule, objective, arm
        self.stride = objective.num_iterations
        self.steps = steps * self.stride
        self.validate = validate
        self.true_utility = true_utility
        self.term_norms_every = term_norms_every
        self.spread = 0.0  # running standard deviation of the rewards of valid rollouts, 0 before the first step
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

    def _judge(
        self, histories: Histories, targets: Tensor, generator: torch.Generator, measure: bool
    ) -> tuple[Judged, dict[str, float]]:
        """Draw a group a sample, score it, and let the gate decide. Returns what to log beside it."""
        options, device = self.objective, targets.device

        def uniforms(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator).to(device)

        context = self.policy.encode(histories)
        if options.rl_positions == "end":
            drawn = self._rollouts(histories, context, uniforms)
            return self._judge_ends(histories, targets, drawn, uniforms, measure)
        codes = self.catalog.codes[targets]

        @functools.cache
        def of_targets() -> Tensor:  # (B, L), scored where something asks
            return self._score(self.policy, context, codes.unsqueeze(1)).squeeze(1)

        drawn = self._rollouts(histories, context, uniforms)
        difficulty = self._difficulty(drawn, targets, of_targets)
        rollouts = inject_target(drawn, targets, codes, of_targets()) if options.inject_target else drawn
        negatives = in_batch_negatives(targets, histories, uniforms(len(targets), len(targets)), options.negatives)
        candidates = distinct_candidates(targets, rollouts.items, negatives)
        scores = candidate_scores(self.reward, histories, candidates)
        true = read_rewards(candidates, scores)
        fake = read_rewards(candidates, shuffled(candidates, scores, uniforms(*scores.shape)))
        spread = self._update_spread(true.rollouts[rollouts.valid])
        of_true, of_fake = (
            gather_evidence(given, rollouts, negatives, targets, difficulty, spread=spread, floor=options.reward_floor)
            for given in (true, fake)
        )
        shadow = decide("adagrpo", of_fake, options)
        rewards = fake if self.arm.gate == "shuffled" else true
        if self.true_utility is not None:
            assert histories.users is not None, "batches say whose histories they hold"
            utilities = self.true_utility(histories.users, targets, rollouts.items)
            agreement = pairwise_agreement(true.rollouts, utilities, rollouts.items).share
            decision = oracle_gate(agreement, of_true.degenerate, minimum=options.oracle_agreement)
        elif self.arm.gate == "shuffled":
            decision = shadow
        else:
            drawn_at_random = uniforms(len(targets)) if self.arm.gate in ("random", "inverted") else None
            decision = decide(self.arm.gate, of_true, options, drawn_at_random)
        judged = self._judged(histories, targets, rewards.rollouts, rollouts, decision, measure)
        judged = judged._replace(evidence=of_true, shuffled_evidence=of_fake)
        values = summary(judged, drawn, true)
        values["constant_rewards"] = constant_share(candidates, scores)
        values["shuffled_admission"] = float(shadow.admitted.float().mean())
        return judged, values

    def _judge_ends(
        self, histories: Histories, targets: Tensor, rollouts: Rollouts, uniforms: Callable[..., Tensor], measure: bool
    ) -> tuple[Judged, dict[str, float]]:
        """Score groups at the ends of histories; without a logged item there is no difficulty or discriminability.

        `shuffled` admits there what `all` does, and permutes the rewards of each group among its distinct items.
        """
        nothing = targets.new_empty(len(targets), 0)
        candidates = distinct_candidates(targets, rollouts.items, nothing)
        scores = candidate_scores(self.reward, histories, candidates)
        rewards = read_rewards(candidates, scores)
        degenerate = degenerate_groups(
            rewards.rollouts,
            rollouts.items,
            spread=self._update_spread(rewards.rollouts[rollouts.valid]),
            relative_floor=self.objective.reward_floor,
        )
        decision = none_gate(degenerate) if self.arm.gate == "none" else all_gate(degenerate)
        read = rewards
        if self.arm.gate == "shuffled":
            read = read_rewards(candidates, shuffled(candidates, scores, uniforms(*scores.shape)))
        judged = self._judged(histories, targets, read.rollouts, rollouts, decision, measure)
        return judged, summary(judged, rollouts, rewards) | {"constant_rewards": constant_share(candidates, scores)}

    def _judged(
        self,
        histories: Histories,
        targets: Tensor,  # (B,)
        rewards: Tensor,  # (B, G)
        rollouts: Rollouts,
        decision: GateDecision,
        measure: bool,
    ) -> Judged:
        """Put together what the reward term reads."""
        options, reference = self.objective, None
        if measure or options.beta > 0 or self.arm.term == "distill":
            reference = self._score(self.starting_policy, self.starting_policy.encode(histories), rollouts.codes)
        advantages = group_advantages(
            rewards, rollouts.valid, invalid_penalty=options.invalid_penalty, scale_rewards=options.scale_rewards
        )
        return Judged(histories, targets, rewards, rollouts, advantages, decision, reference)

    def _rollouts(self, histories: Histories, context: Any, uniforms: Callable[..., Tensor]) -> Rollouts:
        options, trie = self.objective, self.catalog.trie
        count = options.num_generations
        if options.rollout == "beam":
            drawn = beam_rollouts(self.policy, context, trie, count, constrained=options.constrained)
        else:
            chance = uniforms(len(histories.lengths), count, self.catalog.num_levels)
            drawn = draw_rollouts(
                self.policy, context, trie, chance, temperature=options.temperature, constrained=options.constrained
            )
        if options.exclude_history:
            drawn = drawn._replace(items=drawn.items.masked_fill(histories.holds(drawn.items), -1))
        return drawn

    def _score(self, policy: Any, context: Any, codes: Tensor) -> Tensor:
        """(B, G, L) log-probabilities under the distribution that the rollouts are drawn from."""
        options = self.objective
        if options.rollout == "beam":
            return score_sequences(policy, context, codes)
        trie = self.catalog.trie if options.constrained else None
        return score_sequences(policy, context, codes, temperature=options.temperature, trie=trie)

    def _difficulty(self, rollouts: Rollouts, targets: Tensor, of_targets: Callable[[], Tensor]) -> Tensor:  # (B,)
        match self.objective.difficulty:
            case "rollout_miss":
                return rollout_miss(rollouts.items, targets)
            case "target_rank":
                return target_rank(rollouts.log_probs.sum(-1), rollouts.items, of_targets().sum(-1), targets)
            case "target_nll":
                return target_nll(of_targets())
            case "entropy":
                return rollout_entropy(rollouts.log_probs)

    def _update_spread(self, rewards: Tensor) -> Tensor:
        """Fold the rewards of a step's valid rollouts into the running spread; fewer than two change nothing."""
        if len(rewards) > 1:
            now = float(rewards.std())
            if not math.isfinite(now):  # the square of what float32 can hold may be beyond it
                now = float(rewards.double().std())
            self.spread = now if self.spread == 0.0 else 0.9 * self.spread + 0.1 * now
        return torch.tensor(self.spread, device=rewards.device)

    def _reward_term(self, micro: Micro, context: Any) -> tuple[Tensor, dict[str, float]]:
        """`(λ / B_rl) Σ loss_b` over the admitted groups of a micro-batch, and what to log beside it.

        `context` is theirs, if NLL has encoded them already.
        """
        judged, rows = micro.judged, micro.admitted
        assert judged is not None, "nothing is admitted in a step without RL samples"
        if context is None:
            context = self.policy.encode(Histories(judged.histories.items[rows], judged.histories.lengths[rows]))
        log_probs = self._score(self.policy, context, judged.rollouts.codes[rows])
        logged: dict[str, float] = {}
        match self.arm.term:
            case "grpo":
                losses, clipped = self._grpo(log_probs, judged, rows)
                logged["clip_fraction"] = clipped * len(rows) / int(judged.decision.admitted.sum())
            case "distill":
                assert judged.reference is not None, "drawn with the starting policy's log-probabilities"
                teacher = judged.reference[rows].sum(-1) + self.objective.distill_weight * judged.rewards[rows]
                items, codes = judged.rollouts.items[rows], judged.rollouts.codes[rows]
                real = self.catalog.trie.lookup(codes) >= 0  # what is real and yet no item here was left out on purpose
                losses = listwise_distillation(log_probs, teacher, items, codes, real & (items < 0))
            case "best_of_n":
                losses = best_of_n_loss(log_probs, judged.rewards[rows], judged.rollouts.valid[rows])
        if self.objective.validity_weight:
            real = self.catalog.trie.lookup(judged.rollouts.codes[rows]) >= 0
            losses = losses + self.objective.validity_weight * validity_margin(log_probs, real)
        admitted = judged.decision.admitted
        return self.arm.lambda_ * gated_sum(losses, admitted[rows], total=len(admitted)), logged

    def _grpo(self, log_probs: Tensor, judged: Judged, rows: Tensor) -> tuple[Tensor, float]:
        """(A,) GRPO loss of each admitted group, and the share of their codes that the clip has cut."""
        options = self.objective
        old = log_probs.detach() if self.stride == 1 else judged.rollouts.log_probs[rows]
        surrogate = clipped_surrogate(
            log_probs, old, judged.advantages[rows], epsilon=options.epsilon, epsilon_high=options.epsilon_high
        )
        losses = surrogate.loss
        if options.beta > 0 and judged.reference is not None:
            losses = losses + options.beta * kl_k3(log_probs, judged.reference[rows])
        return group_loss(losses), float(surrogate.clipped.float().mean())
