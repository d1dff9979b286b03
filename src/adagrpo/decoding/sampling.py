"""Sampling of Semantic IDs, and scoring of given ones under the same distribution.

    sample           c_l = min {k : F_l(k) > u_l},   F_l the cumulative distribution of softmax(z_l / temperature)
    score sequences  log π(c_l | x, c_<l) of given codes

Samples do not depend on the batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from adagrpo.errors import NotFinite
from adagrpo.policies.policy import ContextT, Policy, StateT
from adagrpo.semantic_ids.trie import Trie


class DeadEnd(RuntimeError):
    """Trie or logits exclude every code, or the given one."""


class Samples(NamedTuple):
    """`G` sampled Semantic IDs for each of `B` samples."""

    codes: Tensor  # (B, G, L) int64
    log_probs: Tensor  # (B, G, L) float32, under the sampling distribution


def check(policy: Policy[Any, Any], trie: Trie | None, temperature: float = 1.0) -> int:
    """Check trie and temperature, and return the number of levels."""
    if trie is not None and tuple(trie.level_sizes) != tuple(policy.level_sizes):
        raise ValueError(f"the trie has levels {tuple(trie.level_sizes)}, the policy {tuple(policy.level_sizes)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    return len(policy.level_sizes)


# no_grad, not inference_mode: the log-probabilities enter a loss later
@torch.no_grad()
def sample(
    policy: Policy[ContextT, StateT],
    context: ContextT,
    uniforms: Tensor,  # (B, G, L) numbers in [0, 1), one per code
    *,
    temperature: float = 1.0,
    trie: Trie | None = None,  # restricts the codes to those that lead to an item; `log_probs` are then renormalised
) -> Samples:
    """Draw `G` Semantic IDs per sample, code by code, by inverse transform sampling.

    DeadEnd if no code can be drawn; NotFinite if logits hold NaN or +inf.
    """
    levels = check(policy, trie, temperature)
    if uniforms.ndim != 3 or uniforms.shape[2] != levels:
        raise ValueError(f"uniforms must be (B, G, {levels}), got {tuple(uniforms.shape)}")
    if not bool(((uniforms >= 0) & (uniforms < 1)).all()):
        raise ValueError("uniforms must lie in [0, 1)")
    hypotheses = torch.arange(uniforms.shape[1], device=uniforms.device).expand(uniforms.shape[:2])
    codes = torch.empty(uniforms.shape, dtype=torch.int64, device=uniforms.device)
    log_probs = torch.empty(uniforms.shape, dtype=torch.float32, device=uniforms.device)
    nodes = torch.zeros(uniforms.shape[0], 1, dtype=torch.int64, device=uniforms.device)
    state = policy.start(context)
    for level in range(levels):
        logits = policy.logits(state).float() / temperature  # (B, 1, K) at the first level, then (B, G, K)
        if logits.shape[0] != uniforms.shape[0]:
            raise ValueError(f"uniforms has {uniforms.shape[0]} samples, the context has {logits.shape[0]}")
        if trie is not None:
            logits = logits.masked_fill(~trie.allowed(level, nodes), -torch.inf)
        highest = logits.amax(-1)
        if not bool(highest.isfinite().all()):
            if bool((highest.isnan() | (highest == torch.inf)).any()):
                raise NotFinite("logits", f"the policy's logits hold NaN or +inf at level {level + 1}")
            raise DeadEnd(f"a hypothesis has no code to draw at level {level + 1}: none is allowed")
        level_log_probs = logits.log_softmax(-1)
        probabilities = level_log_probs.exp()
        # A code of probability 0 gets a cumulative value of 0, so it is never drawn.
        cumulative = probabilities.cumsum(-1).masked_fill_(probabilities == 0, 0)
        total = cumulative.amax(-1)  # (B, W): 1 up to rounding
        # Rounding may carry u * total up to total, where no code would be left.
        draws = uniforms[..., level].to(total.dtype) * total
        draws = torch.minimum(draws, torch.nextafter(total, torch.zeros_like(total)))
        above = (cumulative > draws.unsqueeze(-1)).to(torch.uint8)
        codes[..., level] = above.argmax(-1)  # argmax takes the first of equals
        drawn = codes[..., level : level + 1]
        log_probs[..., level] = level_log_probs.expand(-1, drawn.shape[1], -1).gather(-1, drawn)[..., 0]
        if level + 1 < levels:
            if trie is not None:
                nodes = trie.child(level, nodes.expand_as(hypotheses), codes[..., level])
            parents = torch.zeros_like(hypotheses) if level == 0 else hypotheses
            state = policy.advance(state, parents, codes[..., level])
    return Samples(codes, log_probs)


def score_sequences(
    policy: Policy[ContextT, StateT],
    context: ContextT,
    codes: Tensor,  # (B, G, L)
    *,
    temperature: float = 1.0,
    trie: Trie | None = None,
) -> Tensor:  # (B, G, L)
    """Return log-probabilities of given codes under the distribution of `sample`, with gradients.

    DeadEnd if a sequence is not in the trie.
    """
    levels = check(policy, trie, temperature)
    if codes.ndim != 3 or codes.shape[2] != levels:
        raise ValueError(f"codes must be (B, G, {levels}), got {tuple(codes.shape)}")
    if trie is None:
        return policy.score(context, codes, temperature=temperature)
    hypotheses = torch.arange(codes.shape[1], device=codes.device).expand(codes.shape[:2])
    nodes = torch.zeros_like(hypotheses)
    state = policy.start(context)
    scores = []
    for level in range(levels):
        code = codes[..., level]
        allowed = trie.allowed(level, nodes)  # (B, G, K)
        if not bool(allowed.gather(-1, code.unsqueeze(-1)).all()):
            raise DeadEnd(f"a sequence to score leaves the trie at level {level + 1}")
        logits = policy.logits(state).float() / temperature
        log_probs = logits.masked_fill(~allowed, -torch.inf).log_softmax(-1)
        scores.append(log_probs.gather(-1, code.unsqueeze(-1)))
        if level + 1 < levels:
            nodes = trie.child(level, nodes, code)
            state = policy.advance(state, torch.zeros_like(hypotheses) if level == 0 else hypotheses, code)
    return torch.cat(scores, dim=-1)
