"""Groups of rollouts: drawn, scored by the reward and admitted by the gate, all without gradients.

Once an optimiser step, for all its micro-batches together, so that what is drawn is a function of (weights, seed, step)
and not of how the step is cut. One call of the reward scores the rollouts, the logged items and the in-batch negatives;
the same scores, permuted within each group, say what a reward that knows nothing would have had admitted.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adagrpo.config import Gate, ObjectiveConfig
from adagrpo.decoding import score_sequences
from adagrpo.objective import (
    GateDecision,
    agreement_gate,
    all_gate,
    degenerate_groups,
    none_gate,
    pairwise_agreement,
    rollout_miss,
)
from adagrpo.objective.terms import TERMS
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
from adagrpo.trainer.gating import decide, gather_evidence
from adagrpo.trainer.groups import Judged, summary
from adagrpo.types import Histories, Rollouts

__all__ = ["Arm", "GroupJudge", "TrueUtility"]

# (B,) users, (B,) logged items and (B, N) items to the (B, N) utility of those just before the logged item was chosen
TrueUtility = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Arm:
    """One way to post-train: with or without the NLL anchor, which reward term, how much, and which samples get it."""

    anchored: bool
    lambda_: float
    gate: Gate
    term: str = "grpo"  # of `adagrpo.objective.terms`


class GroupJudge:
    """What post-training draws and judges its groups with; its state: the running spread of rewards."""

    def __init__(
        self,
        policy: nn.Module,
        catalog: Catalog,
        reward: Reward,
        objective: ObjectiveConfig,
        arm: Arm,
        true_utility: TrueUtility | None,
    ) -> None:
        if (arm.gate == "oracle") != (true_utility is not None):
            raise ValueError("the oracle gate needs the true utility, and nothing else may have it")
        self.policy: Any = policy
        self.starting_policy: Any = copy.deepcopy(policy).eval().requires_grad_(False)
        self.catalog, self.reward, self.objective, self.arm = catalog, reward, objective, arm
        self.true_utility = true_utility
        self.spread = 0.0  # running standard deviation of the rewards of valid rollouts, 0 before the first step

    def _judge(
        self, histories: Histories, targets: Tensor, generator: torch.Generator, measure: bool
    ) -> tuple[Judged, dict[str, float]]:
        """Draw a group a sample, score it, and let the gate decide. Returns what to log beside it."""
        options, device = self.objective, targets.device

        def uniforms(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator).to(device)

        context = self.policy.encode(histories)
        if options.rl_positions == "end":
            drawn = self._rollouts(histories, context, generator)
            return self._judge_ends(histories, targets, drawn, uniforms, measure)
        codes = self.catalog.codes[targets]

        rollouts = drawn = self._rollouts(histories, context, generator)
        difficulty = rollout_miss(drawn.items, targets)
        if options.inject_target:
            of_targets = self._score(self.policy, context, codes.unsqueeze(1)).squeeze(1)
            rollouts = inject_target(drawn, targets, codes, of_targets)
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
            decision = agreement_gate(agreement, of_true.degenerate, minimum=options.oracle_agreement)
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
        term, reference = self.arm.term, None
        if measure or TERMS[term].needs_reference(self.objective.of_term(term)):
            reference = self._score(self.starting_policy, self.starting_policy.encode(histories), rollouts.codes)
        return Judged(histories, targets, rewards, rollouts, decision, reference)

    def _rollouts(self, histories: Histories, context: Any, generator: torch.Generator) -> Rollouts:
        options, trie = self.objective, self.catalog.trie
        count, temperature, constrained = options.num_generations, options.temperature, options.constrained
        match options.rollout:
            case "beam":
                drawn = beam_rollouts(self.policy, context, trie, count, constrained=constrained)
            case "sample":
                shape = (len(histories.lengths), count, self.catalog.num_levels)
                chance = torch.rand(shape, generator=generator).to(histories.lengths.device)
                drawn = draw_rollouts(
                    self.policy, context, trie, chance, temperature=temperature, constrained=constrained
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

    def _update_spread(self, rewards: Tensor) -> Tensor:
        """Fold the rewards of a step's valid rollouts into the running spread; fewer than two change nothing."""
        if len(rewards) > 1:
            now = float(rewards.std())
            if not math.isfinite(now):  # the square of what float32 can hold may be beyond it
                now = float(rewards.double().std())
            self.spread = now if self.spread == 0.0 else 0.9 * self.spread + 0.1 * now
        return torch.tensor(self.spread, device=rewards.device)
