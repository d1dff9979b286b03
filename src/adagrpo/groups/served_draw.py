"""Rollouts that an inference engine draws, for policies too large to draw them beside the training.

A worker is `adagrpo.engines.engine_client.Server`: `update(folder)` gives it the weights of an export, `draw` asks it
for samples that its processor holds to the catalogue. What it says of their probability is never trained on: precision,
kernels and weights that are a step old make it another number than ours, and a ratio of the two is not one. Each sample
is scored again by the policy itself, as if it had drawn it, and how far the worker was off is reported:

    drift = mean and largest of |log π_worker(c) - log π(c)| over the codes drawn

Large drift means that the samples are not of this policy: the worker has other weights, or another catalogue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from adagrpo.decoding import score_sequences
from adagrpo.engines.engine_client import Server
from adagrpo.errors import ServiceError
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.types import Histories, Rollouts

if TYPE_CHECKING:
    from adagrpo.policies.causal_context import CausalContext
    from adagrpo.policies.causal_lm import CausalLMPolicy

__all__ = ["Drift", "ServedRollouts", "served_rollouts"]


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
    seed: int = 0,
) -> ServedRollouts:
    """Have a worker draw `G` rollouts a sample, constrained to the catalogue.

    Args:
        server: serves an export of this policy.
        policy: scores what was drawn.
        catalog: of the policy.
        histories: `B` histories.
        count: `G`.
        temperature: divides the logits.
        seed: of the worker's samples.

    Raises:
        ServiceError: the worker wrote what is no item that may be written, so it serves another catalogue or holds
            nothing.
    """
    context = policy.encode(histories)
    prompts = [_prompt(policy, context, row) for row in range(len(context))]
    levels = catalog.num_levels
    drawn = server.draw(prompts, count, length=levels, temperature=temperature, seed=seed)
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


def _prompt(policy: CausalLMPolicy, context: CausalContext, row: int) -> list[int]:
    tokens: Tensor = context.of_rows(context.prompts.tokens)[row, : int(context.prompt_lengths[row])]
    return [*map(int, tokens.tolist()), *map(int, policy.suffix.tolist())]
