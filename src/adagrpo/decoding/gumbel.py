"""Drawing without replacement: the highest of log-probability plus Gumbel noise.

gumbel top k     k distinct sequences, the highest of  Σ_l log π(c_l | x, c_<l) + Gumbel noise
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from adagrpo.decoding.lanes import check, check_lanes, top
from adagrpo.layers import take
from adagrpo.policies.base import DecoderState, Policy
from adagrpo.semantic_ids.trie import Trie

__all__ = ["DistinctSamples", "gumbel_top_k"]

ContextT = TypeVar("ContextT")
StateT = TypeVar("StateT", bound=DecoderState)


class DistinctSamples(NamedTuple):
    """`G` different Semantic IDs for each of `B` samples, drawn without replacement."""

    codes: Tensor  # (B, G, L) int64, in the order of drawing; -1 in lanes that found no sequence
    log_probs: Tensor  # (B, G, L) float32, of the distribution that was drawn from; -inf in those lanes
    inclusion: Tensor  # (B, G) float32, probability of being drawn given the threshold; 0 in those lanes


@torch.no_grad()
def gumbel_top_k(
    policy: Policy[ContextT, StateT],
    context: ContextT,
    group: int,
    generator: torch.Generator,
    *,
    temperature: float = 1.0,
    trie: Trie | None = None,
) -> DistinctSamples:
    """Draw `G` different Semantic IDs a sample: as if one after the other, each from what is left, in proportion.

    A sequence's log-probability plus Gumbel noise orders all sequences; the highest are such a draw. Noise is drawn
    from the root down: that of a prefix's children is drawn given that the highest of them has the prefix's own. The
    highest but `G`, the threshold κ, gives inclusion = 1 - exp(-exp(log π - κ)), and

        Σ_g f(o_g) π(o_g) / inclusion(o_g)      estimates  E f(o), o ~ π,   without bias

    Stochastic beam search: Kool, van Hoof & Welling 2019. Where we depart: the noise of the root is drawn too, which
    the estimate needs.

    Args:
        policy: the policy to draw from.
        context: `B` encoded samples.
        group: `G`.
        generator: of the noise; what is drawn depends on how a batch was split.
        temperature: divides the logits, above 0.
        trie: where given, only its sequences are drawn, from the distribution that `sample` draws from.

    Raises:
        ValueError: `group` is below 1, `temperature` is not positive, or the trie's levels are not the policy's.
        DeadEnd: a lane has no code to draw.
        NotFinite: the policy's logits hold NaN, or +inf.
    """
    levels = check(policy, trie, temperature)
    if group < 1:
        raise ValueError(f"group must be at least 1, got {group}")
    state = policy.start(context)
    logits = policy.logits(state)  # (B, 1, K)
    device = logits.device
    noisy = _gumbel((len(logits), 1), generator, device)  # (B, W): log-probability and noise of what is written
    written = torch.empty(len(logits), 1, 0, dtype=torch.int64, device=device)
    log_probs = torch.empty(len(logits), 1, 0, device=device)  # (B, W, level)
    nodes = torch.zeros(len(logits), 1, dtype=torch.int64, device=device)
    for level in range(levels):
        scaled = logits.float() / temperature
        if trie is not None:
            dead = (noisy == -torch.inf).unsqueeze(-1)  # such a lane may write anything
            scaled = scaled.masked_fill(~(trie.allowed(level, nodes) | dead), -torch.inf)
        check_lanes(scaled, level)
        step = scaled.log_softmax(-1)  # (B, W, K)
        totals = log_probs.sum(-1, keepdim=True) + step
        children = _given_maximum(totals + _gumbel(totals.shape, generator, device), noisy)
        flat = top(children.flatten(1), min(group + 1, children[0].numel()))  # (B, W'): one more, for the threshold
        parents, codes = flat // step.shape[-1], flat % step.shape[-1]
        noisy = children.flatten(1).gather(1, flat)
        chosen = step.flatten(1).gather(1, flat).masked_fill(noisy == -torch.inf, -torch.inf)
        written = torch.cat([take(written, parents), codes.unsqueeze(-1)], dim=-1)
        log_probs = torch.cat([take(log_probs, parents), chosen.unsqueeze(-1)], dim=-1)
        if level + 1 < levels:
            if trie is not None:
                nodes = trie.child(level, nodes.gather(1, parents), codes)
            state = policy.advance(state, parents, codes)
            logits = policy.logits(state)
    missing = group + 1 - noisy.shape[1]
    threshold = noisy[:, group:] if missing == 0 else torch.full_like(noisy[:, :1], -torch.inf)  # (B, 1)
    inclusion = -torch.expm1(-torch.exp(log_probs.sum(-1) - threshold)).nan_to_num(0.0)  # -inf less -inf: nothing
    empty = noisy == -torch.inf
    written = written.masked_fill(empty.unsqueeze(-1), -1)
    log_probs = log_probs.masked_fill(empty.unsqueeze(-1), -torch.inf)
    fill = max(0, missing - 1)
    return DistinctSamples(
        torch.nn.functional.pad(written[:, :group], (0, 0, 0, fill), value=-1),
        torch.nn.functional.pad(log_probs[:, :group], (0, 0, 0, fill), value=-torch.inf),
        torch.nn.functional.pad(inclusion.masked_fill(empty, 0.0)[:, :group], (0, fill)),
    )


def _gumbel(shape: Sequence[int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Standard Gumbel noise."""
    uniforms = torch.rand(shape, generator=generator, device=generator.device).to(device)
    tiny = torch.finfo(uniforms.dtype).tiny
    return -(-uniforms.clamp(min=tiny).log()).clamp(min=tiny).log()


def _given_maximum(
    values: Tensor,  # (B, W, K), log-probability and noise, -inf where nothing can be
    maximum: Tensor,  # (B, W)
) -> Tensor:  # (B, W, K)
    """The values had the highest of each lane been `maximum`: -log(exp(-maximum) - exp(-highest) + exp(-value))."""
    highest = values.amax(-1, keepdim=True)
    difference = maximum.unsqueeze(-1) - values + torch.log1p(-torch.exp(values - highest))  # -inf at the highest
    shifted = maximum.unsqueeze(-1) - difference.clamp(min=0) - torch.log1p(torch.exp(-difference.abs()))
    possible = (values > -torch.inf) & (maximum > -torch.inf).unsqueeze(-1)
    return torch.where(possible, shifted, -torch.inf)
