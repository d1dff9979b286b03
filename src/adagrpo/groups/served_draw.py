"""Rollouts that an inference engine draws, for policies too large to draw them beside the training.

A worker is `adagrpo.engines.engine_client.Server`: `update(folder)` gives it the weights of an export, `draw` asks it
for samples that its processor holds to the catalogue. What it says of their probability is never trained on: precision,
kernels and weights that are a step old make it another number than ours, and a ratio of the two is not one. Each sample
is scored again by the policy itself, as if it had drawn it, and how far the worker was off is reported:

    drift = mean and largest of |log π_worker(c) - log π(c)| over the codes drawn

Large drift means that the samples are not of this policy: the worker has other weights, or another catalogue.

`RolloutWorker` is what post-training takes: it also has the worker read the policy's weights when they have moved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from adagrpo.decoding import score_sequences
from adagrpo.engines.engine_client import Server, ServerError
from adagrpo.errors import ServiceError
from adagrpo.policies.policy import Context, Policy
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.types import Histories, Rollouts

if TYPE_CHECKING:
    from adagrpo.policies.causal_context import CausalContext
    from adagrpo.policies.causal_lm import CausalLMPolicy

__all__ = ["Drift", "RolloutWorker", "ServedRollouts", "served_rollouts"]


class Drift(NamedTuple):
    """How far the worker's log-probabilities are from the policy's, a code."""

    mean: float
    largest: float


class ServedRollouts(NamedTuple):
    """Groups as a worker drew them."""

    rollouts: Rollouts  # (B, G, L); `log_probs` are the policy's own, of the distribution drawn from
    drift: Drift


@torch.no_grad()
def served_rollouts(
    server: Server,
    policy: CausalLMPolicy,
    catalog: Catalog,
    histories: Histories,  # (B, T)
    count: int,
    *,
    temperature: float = 1.0,
    seeds: Sequence[int] | None = None,
    context: CausalContext | None = None,
) -> ServedRollouts:
    """Have a worker draw `G` rollouts a sample, constrained to the catalogue.

    Args:
        server: serves an export of this policy.
        policy: scores what was drawn.
        catalog: of the policy.
        histories: `B` histories.
        count: `G`.
        temperature: divides the logits.
        seeds: of each history's samples, `G` numbers from there on; from 0 on where none are given.
        context: of the histories, where they are encoded already.

    Raises:
        ServiceError: the worker failed, or wrote what is no item that may be written, so it serves another catalogue or
            holds nothing.
    """
    if context is None:
        context = policy.encode(histories)
    if seeds is None:
        seeds = range(0, len(context) * count, count)
    prompts = [_prompt(policy, context, row) for row in range(len(context))]
    levels = catalog.num_levels
    try:
        drawn = server.draw(prompts, count, length=levels, temperature=temperature, seeds=list(seeds))
    except ServerError as error:
        raise ServiceError(f"the rollout worker failed: {error}") from error
    code_of = [{token: code for code, token in enumerate(level)} for level in policy.vocabulary.of_levels]
    try:
        codes = [
            [[code_of[level][token] for level, token in enumerate(tokens)] for tokens in samples.tokens]
            for samples in drawn
        ]
        chosen = torch.tensor(codes, dtype=torch.int64).view(len(prompts), count, levels)
        said = torch.tensor([samples.log_probs for samples in drawn]).view(chosen.shape)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        raise ServiceError("the rollout worker wrote tokens that name no item; does it serve this export?") from error
    chosen = chosen.to(histories.lengths.device)
    items = catalog.trie.lookup(chosen)
    if bool((items < 0).any()):
        raise ServiceError("the rollout worker wrote codes that name no item; does it serve this export?")
    held = score_sequences(policy, context, chosen, temperature=temperature, trie=catalog.trie)
    own = held if server.says_held else policy.score(context, chosen)
    off = (said.to(own.device) - own).abs()
    return ServedRollouts(Rollouts(chosen, items, held), Drift(float(off.mean()), float(off.max())))


def _sums(weight: Tensor) -> Tensor:
    """Of the numbers and of their squares. Versions of tensors do not tell: some optimisers change none."""
    return torch.stack([weight.sum(dtype=torch.float64), weight.float().square().sum(dtype=torch.float64)])


def _prompt(policy: CausalLMPolicy, context: CausalContext, row: int) -> list[int]:
    tokens: Tensor = context.of_rows(context.prompts.tokens)[row, : int(context.prompt_lengths[row])]
    return [*map(int, tokens.tolist()), *map(int, policy.suffix.tolist())]


class RolloutWorker:
    """A worker that draws the groups of post-training, and reads the policy's weights when they have moved."""

    def __init__(
        self, server: Server, hand_over: Callable[[Policy[Any, Any]], None], *, every: int = 1, most_drift: float = 0.5
    ) -> None:
        """Describe it; nothing is asked yet.

        Args:
            server: serves an export with the same catalogue.
            hand_over: has the server read the weights of a policy.
            every: so many draws are made with the same weights.
            most_drift: the mean difference of a code's log-probability at which a draw is refused.
        """
        self.server, self.hand_over, self.every, self.most_drift = server, hand_over, every, most_drift
        self._has: Tensor | None = None  # sums of the weights that it has, by which moved ones are told
        self._draws = 0  # made with them
        self._told: list[Drift] = []

    def follow(self, policy: Policy[Any, Any]) -> None:
        """Have the server read the policy's weights before a draw, if they have moved and it is time.

        Raises:
            ServiceError: it could not.
        """
        sums = torch.stack([_sums(weight.detach()) for weight in policy.parameters()])
        if self._has is None or (self._draws >= self.every and not torch.equal(sums, self._has)):
            try:
                self.hand_over(policy)
            except ServerError as error:
                raise ServiceError(f"the rollout worker failed: {error}") from error
            self._has, self._draws = sums, 0
        self._draws += 1

    def draw(
        self,
        policy: Policy[Any, Any],
        context: Context,
        catalog: Catalog,
        histories: Histories,  # (B, T)
        count: int,
        *,
        temperature: float,
        seeds: Sequence[int],
    ) -> Rollouts:
        """`G` rollouts a sample, see `served_rollouts`.

        Raises:
            ServiceError: the worker failed, or its log-probabilities are too far from the policy's.
        """
        causal: Any = policy
        known: Any = context
        found = served_rollouts(
            self.server, causal, catalog, histories, count, temperature=temperature, seeds=seeds, context=known
        )
        if not found.drift.mean <= self.most_drift:
            raise ServiceError(
                f"the rollout worker's log-probabilities are off by {found.drift.mean:.2g} a code, more than "
                f"{self.most_drift:g}; does it serve this policy?"
            )
        self._told.append(found.drift)
        return found.rollouts

    def told(self) -> dict[str, float]:
        """What the draws since the last call drifted, for the log of a step; nothing where this process made none."""
        drifts, self._told = self._told, []
        if not drifts:
            return {}
        mean = sum(drift.mean for drift in drifts) / len(drifts)
        return {"rollout_drift": mean, "rollout_drift_largest": max(drift.largest for drift in drifts)}
