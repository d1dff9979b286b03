"""Groups of rollouts that an engine samples, for a policy of `adagrpo`. Has never been run with an engine.

What an engine says of a sample's probability is never trained on: precision, kernels and weights that are a step old
make it another number than the policy's own. Each sample is scored again by the policy, and the difference is reported:

    drift = mean of |log p_engine(c) - log p(c)| over the codes drawn

A large drift means that the engine serves other weights, or another catalogue.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from engine_client import Server

from adagrpo.decoding import score_sequences
from adagrpo.policies.causal_lm import CausalLMPolicy
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.types import Histories, Rollouts

__all__ = ["EngineRollouts", "engine_rollouts"]


class EngineRollouts(NamedTuple):
    """Groups as an engine drew them."""

    rollouts: Rollouts  # (B, G, L); `log_probs` are the policy's own, of the distribution drawn from
    drift: float


@torch.no_grad()
def engine_rollouts(
    server: Server,
    policy: CausalLMPolicy,
    catalog: Catalog,
    histories: Histories,  # (B, T)
    count: int,
    *,
    temperature: float = 1.0,
    whole_vocabulary: bool = False,
) -> EngineRollouts:
    """Draw `G` constrained rollouts a history.

    Args:
        server: serves an export of this policy.
        policy: scores what was drawn.
        catalog: of the policy.
        histories: `B` histories.
        count: `G`.
        temperature: divides the logits.
        whole_vocabulary: the engine's log-probabilities are of the whole vocabulary (vLLM), and not of the distribution
            drawn from (SGLang).

    Raises:
        ValueError: the engine wrote tokens that name no item, so it serves another catalogue or holds nothing.
    """
    context = policy.encode(histories)
    prompts = context.of_rows(context.prompts.tokens)
    drawn = []
    for row, length in enumerate(context.prompt_lengths.tolist()):
        prompt = [*prompts[row, :length].tolist(), *policy.suffix.tolist()]
        levels = catalog.num_levels
        drawn.append(server.draw(prompt, count, length=levels, temperature=temperature, seed=row * count))
    code_of = [{token: code for code, token in enumerate(level)} for level in policy.vocabulary.of_levels]
    codes = torch.tensor(
        [
            [[code_of[level].get(token, -1) for level, token in enumerate(one)] for one in group.tokens]
            for group in drawn
        ]
    )
    items = catalog.trie.lookup(codes.clamp(min=0)).masked_fill((codes < 0).any(-1), -1)
    if bool((items < 0).any()):
        raise ValueError("the engine wrote tokens that name no item; does it serve this export?")
    log_probs = score_sequences(policy, context, codes, temperature=temperature, trie=catalog.trie)
    own = policy.score(context, codes) if whole_vocabulary else log_probs
    said = torch.tensor([group.log_probs for group in drawn])
    return EngineRollouts(Rollouts(codes, items, log_probs), float((said - own).abs().mean()))
