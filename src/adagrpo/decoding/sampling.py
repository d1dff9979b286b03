"""Drawing Semantic IDs, and scoring given ones, under the distribution that is drawn from.

    sample           c_l = min {k : F_l(k) > u_l},   F_l the cumulative distribution of softmax(z_l / temperature)
    score sequences  log π(c_l | x, c_<l) of given codes

Sampling inverts the distribution function at uniforms that the caller passes in (one a code), so what is drawn is a
function of the weights and the uniforms alone, and does not depend on how a batch was split. A trie masks the logits
and renormalises: a policy gradient needs the probabilities of the very distribution that was sampled from.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from adagrpo.decoding.hypotheses import DeadEnd, check, check_hypotheses
from adagrpo.policies.policy import Context, DecoderState, Policy
from adagrpo.semantic_ids.trie import Trie

ContextT = TypeVar("ContextT", bound=Context)
StateT = TypeVar("StateT", bound=DecoderState)


class Samples(NamedTuple):
    """`G` sampled Semantic IDs for each of `B` samples."""

    codes: Tensor  # (B, G, L) int64
    log_probs: Tensor  # (B, G, L) float32, of the distribution that was really sampled


# no_grad and not inference_mode: the log-probabilities enter a loss later, which inference tensors may not
@torch.no_grad()
def sample(
    policy: Policy[ContextT, StateT],
    context: ContextT,
    uniforms: Tensor,  # (B, G, L)
    *,
    temperature: float = 1.0,
    trie: Trie | None = None,
) -> Samples:
    """Draw `G` Semantic IDs a sample, code by code, by inverting the distribution function of each softmax.

    Args:
        context: `B` encoded samples.
        uniforms: (B, G, L) numbers in [0, 1), one for each code.
        temperature: divides the logits, above 0.
        trie: where given, only codes that continue to an item can be drawn, with the others' mass shared out among
            them, and `log_probs` are those of this constrained distribution.

    Returns:
        Codes and their log-probabilities under the distribution that was sampled.

    Raises:
        ValueError: `uniforms` has another shape or leaves [0, 1), `temperature` is not positive, or the trie's levels
            are not the policy's.
        DeadEnd: a hypothesis has no code to draw.
        NotFinite: the policy's logits hold NaN, or +inf.
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
        check_hypotheses(logits, level)
        level_log_probs = logits.log_softmax(-1)
        codes[..., level] = _invert(level_log_probs.exp(), uniforms[..., level])
        drawn = codes[..., level : level + 1]
        log_probs[..., level] = level_log_probs.expand(-1, drawn.shape[1], -1).gather(-1, drawn)[..., 0]
        if level + 1 < levels:
            if trie is not None:
                nodes = trie.child(level, nodes.expand_as(hypotheses), codes[..., level])
            parents = torch.zeros_like(hypotheses) if level == 0 else hypotheses
            state = policy.advance(state, parents, codes[..., level])
    return Samples(codes, log_probs)


def _invert(
    probabilities: Tensor,  # (B, W, K), W = 1 or G
    uniforms: Tensor,  # (B, G)
) -> Tensor:  # (B, G) int64
    """The first code whose cumulative probability exceeds the uniform; never one of probability 0."""
    # A code of probability 0 gets a cumulative value of 0, which no draw is below.
    cumulative = probabilities.cumsum(-1).masked_fill_(probabilities == 0, 0)
    total = cumulative.amax(-1)  # (B, W): 1 up to rounding
    # Rounding may carry u * total up to total, where no code would be left.
    draws = torch.minimum(uniforms.to(total.dtype) * total, torch.nextafter(total, torch.zeros_like(total)))
    return (cumulative > draws.unsqueeze(-1)).to(torch.uint8).argmax(-1)  # argmax takes the first of equals


def score_sequences(
    policy: Policy[ContextT, StateT],
    context: ContextT,
    codes: Tensor,  # (B, G, L)
    *,
    temperature: float = 1.0,
    trie: Trie | None = None,
) -> Tensor:  # (B, G, L)
    """Log-probabilities of given codes under the distribution that `sample` draws from, with gradients.

    Args:
        context: `B` encoded samples.
        codes: (B, G, L) int64.
        temperature: divides the logits, above 0.
        trie: where given, each code's probability is renormalised over the codes that the trie allows in its place.

    Returns:
        (B, G, L) float32 log-probability of each code given the codes before it.

    Raises:
        ValueError: `codes` has another shape, `temperature` is not positive, or the trie's levels are not the policy's.
        DeadEnd: a sequence is not in the trie.
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
