"""Writing Semantic IDs with a policy: ancestral sampling and beam search, free or held to a catalogue by a trie.

    gumbel top k     k distinct sequences, the highest of  Σ_l log π(c_l | x, c_<l) + Gumbel noise
    sample           c_l = min {k : F_l(k) > u_l},   F_l the cumulative distribution of softmax(z_l / temperature)
    score sequences  log π(c_l | x, c_<l) of given codes, under the distribution that `sample` draws from
    beam search      the W highest of  Σ_l log π(c_l | x, c_<l)  that a width of W keeps in sight

Sampling inverts the distribution function at uniforms that the caller passes in (one a code), so what is drawn is a
function of the weights and the uniforms alone, and does not depend on how a batch was split.

A trie narrows sampling and search in different ways, on purpose. `sample` and `score_sequences` mask the logits and
renormalise, because a policy gradient needs the probabilities of the very distribution that was sampled from.
`beam_search` rules continuations out *after* the log-softmax and does not renormalise, as Hugging Face's `generate`
does with a prefix function, so that items are ranked by the policy's own probability; a lane whose siblings are ruled
out gains nothing from it.

Many open implementations let a row run on unconstrained when its prefix is not in the trie. Here that is `DeadEnd`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from adagrpo.errors import NotFinite
from adagrpo.policies.base import DecoderState, Policy
from adagrpo.semantic_ids.trie import Trie

__all__ = [
    "Beams",
    "DeadEnd",
    "DistinctSamples",
    "Samples",
    "beam_search",
    "gumbel_top_k",
    "sample",
    "score_sequences",
]

ContextT = TypeVar("ContextT")
StateT = TypeVar("StateT", bound=DecoderState)

# Continuations are searched in spans of at most this many codes, see `_best_continuations`.
_SPAN = 32
_SHORTEST_SPAN = 8  # a level whose size has no divisor from here to there is filled up


class DeadEnd(RuntimeError):
    """A lane has nowhere to go: the trie or the policy's own logits rule out every code, or the one that was given."""


class Samples(NamedTuple):
    """`G` sampled Semantic IDs for each of `B` samples."""

    codes: Tensor  # (B, G, L) int64
    log_probs: Tensor  # (B, G, L) float32, of the distribution that was really sampled


class Beams(NamedTuple):
    """The `W` best Semantic IDs that beam search found for each of `B` samples, best first."""

    codes: Tensor  # (B, W, L) int64, -1 in lanes that found no sequence
    scores: Tensor  # (B, W) float32, sum of the policy's log-probabilities, -inf in lanes that found no sequence


class DistinctSamples(NamedTuple):
    """`G` different Semantic IDs for each of `B` samples, drawn without replacement."""

    codes: Tensor  # (B, G, L) int64, in the order of drawing; -1 in lanes that found no sequence
    log_probs: Tensor  # (B, G, L) float32, of the distribution that was drawn from; -inf in those lanes
    inclusion: Tensor  # (B, G) float32, probability of being drawn given the threshold; 0 in those lanes


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
        policy: the policy to sample from.
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
        DeadEnd: a lane has no code to draw.
        NotFinite: the policy's logits hold NaN, or +inf.
    """
    levels = _check(policy, trie, temperature)
    if uniforms.ndim != 3 or uniforms.shape[2] != levels:
        raise ValueError(f"uniforms must be (B, G, {levels}), got {tuple(uniforms.shape)}")
    if not bool(((uniforms >= 0) & (uniforms < 1)).all()):
        raise ValueError("uniforms must lie in [0, 1)")
    lanes = torch.arange(uniforms.shape[1], device=uniforms.device).expand(uniforms.shape[:2])
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
        _check_lanes(logits, level)
        level_log_probs = logits.log_softmax(-1)
        codes[..., level] = _invert(level_log_probs.exp(), uniforms[..., level])
        drawn = codes[..., level : level + 1]
        log_probs[..., level] = level_log_probs.expand(-1, drawn.shape[1], -1).gather(-1, drawn)[..., 0]
        if level + 1 < levels:
            if trie is not None:
                nodes = trie.child(level, nodes.expand_as(lanes), codes[..., level])
            parents = torch.zeros_like(lanes) if level == 0 else lanes
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
        policy: the policy that scores.
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
    levels = _check(policy, trie, temperature)
    if codes.ndim != 3 or codes.shape[2] != levels:
        raise ValueError(f"codes must be (B, G, {levels}), got {tuple(codes.shape)}")
    if trie is None:
        return policy.score(context, codes, temperature=temperature)
    lanes = torch.arange(codes.shape[1], device=codes.device).expand(codes.shape[:2])
    nodes = torch.zeros_like(lanes)
    state = policy.start(context)
    scores = []
    for level in range(levels):
        given = codes[..., level]
        allowed = trie.allowed(level, nodes)  # (B, G, K)
        if not bool(allowed.gather(-1, given.unsqueeze(-1)).all()):
            raise DeadEnd(f"a sequence to score leaves the trie at level {level + 1}")
        logits = policy.logits(state).float() / temperature
        log_probs = logits.masked_fill(~allowed, -torch.inf).log_softmax(-1)
        scores.append(log_probs.gather(-1, given.unsqueeze(-1)))
        if level + 1 < levels:
            nodes = trie.child(level, nodes, given)
            state = policy.advance(state, torch.zeros_like(lanes) if level == 0 else lanes, given)
    return torch.cat(scores, dim=-1)


@torch.no_grad()
def beam_search(
    policy: Policy[ContextT, StateT],
    context: ContextT,
    width: int,
    *,
    trie: Trie | None = None,
) -> Beams:
    """Find the `W` most probable Semantic IDs of each sample, as far as a beam of `W` lanes sees them.

    The search is exact where `W` is at least the number of prefixes at every level but the last. Equal scores are
    ordered by the rank of the parent lane, then by the lower code, on every device.

    Args:
        policy: the policy to search.
        context: `B` encoded samples.
        width: `W`, lanes kept at each level and sequences returned.
        trie: where given, only sequences of the trie are found. They are ranked by the policy's own free probability,
            not by one renormalised over what the trie allows.

    Returns:
        Beams, best first. Where fewer than `W` sequences of positive probability exist, the lanes left over hold codes
        -1 and score -inf.

    Raises:
        ValueError: `width` is below 1, or the trie's levels are not the policy's.
        DeadEnd: the trie allows no continuation of one of its own prefixes.
        NotFinite: the policy's logits hold NaN, or +inf.
    """
    levels = _check(policy, trie)
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    state = policy.start(context)
    logits = policy.logits(state)  # (B, 1, K)
    scores = torch.zeros(logits.shape[:2], dtype=torch.float32, device=logits.device)  # (B, W)
    nodes = torch.zeros(logits.shape[:2], dtype=torch.int64, device=logits.device)  # (B, W)
    written = torch.empty(*logits.shape[:2], 0, dtype=torch.int64, device=logits.device)  # (B, W, level)
    for level in range(levels):
        if trie is None:
            log_probs = logits.float().log_softmax(-1)
            scores, parents, codes = _best_continuations(log_probs, scores, width)
        else:  # only the children are looked at, most of the codes of a level name none
            children, below = trie.children(level, nodes)  # (B, W, C) each, -1 where there is none
            if not bool(((children >= 0).any(-1) | (scores == -torch.inf)).all()):
                raise DeadEnd(f"the trie allows no code at level {level + 1} after a prefix that it allowed before")
            log_probs = _log_probs_of(logits.float(), children)
            scores, parents, places = _best_continuations(log_probs, scores, width)
            flat = parents * children.shape[-1] + places
            codes, nodes = children.flatten(1).gather(1, flat), below.flatten(1).gather(1, flat)
            codes = codes.clamp(min=0)  # -1 only in dead lanes
        written = torch.cat([_take(written, parents), codes.unsqueeze(-1)], dim=-1)
        if level + 1 < levels:
            state = policy.advance(state, parents, codes)
            logits = policy.logits(state)
    written = written.masked_fill((scores == -torch.inf).unsqueeze(-1), -1)
    missing = width - scores.shape[1]  # fewer sequences exist than lanes were asked for
    return Beams(
        torch.nn.functional.pad(written, (0, 0, 0, missing), value=-1),
        torch.nn.functional.pad(scores, (0, missing), value=-torch.inf),
    )


def _log_probs_of(
    logits: Tensor,  # (B, W, K)
    codes: Tensor,  # (B, W, C)
) -> Tensor:  # (B, W, C)
    """Log-probabilities of some codes under the softmax over all, -inf where a place holds no code."""
    found = logits.gather(-1, codes.clamp(min=0)) - logits.logsumexp(-1, keepdim=True)
    return found.masked_fill_(codes < 0, -torch.inf)


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
    levels = _check(policy, trie, temperature)
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
        _check_lanes(scaled, level)
        step = scaled.log_softmax(-1)  # (B, W, K)
        totals = log_probs.sum(-1, keepdim=True) + step
        children = _given_maximum(totals + _gumbel(totals.shape, generator, device), noisy)
        flat = _top(children.flatten(1), min(group + 1, children[0].numel()))  # (B, W'): one more, for the threshold
        parents, codes = flat // step.shape[-1], flat % step.shape[-1]
        noisy = children.flatten(1).gather(1, flat)
        chosen = step.flatten(1).gather(1, flat).masked_fill(noisy == -torch.inf, -torch.inf)
        written = torch.cat([_take(written, parents), codes.unsqueeze(-1)], dim=-1)
        log_probs = torch.cat([_take(log_probs, parents), chosen.unsqueeze(-1)], dim=-1)
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


def _check_lanes(
    logits: Tensor,  # (B, W, K), -inf where a code is not allowed
    level: int,
) -> None:
    """Every lane must have a code to draw, and a softmax to draw it from."""
    highest = logits.amax(-1)
    if bool(highest.isfinite().all()):
        return
    if bool((highest.isnan() | (highest == torch.inf)).any()):
        raise NotFinite("logits", f"the policy's logits hold NaN or +inf at level {level + 1}")
    raise DeadEnd(f"a lane has no code to draw at level {level + 1}: none is allowed")


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


def _best_continuations(
    log_probs: Tensor,  # (B, W, K)
    scores: Tensor,  # (B, W)
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:  # scores, parents, codes: (B, W')
    """The `W' = min(width, W * K)` best continuations of all lanes, best first.

    The codes of a lane are cut into spans. The best `W'` continuations lie in the `W'` spans with the highest maxima
    (any other span has `W'` continuations ahead of it), so only those are sorted, and the W * K totals are never
    written out. On a CPU that settles equals at the price of one `torch.topk` over the totals, which does not; settling
    them over all totals takes five times as long, and a top-k in each lane first takes four.
    """
    samples, lanes, size = log_probs.shape
    span = max(d for d in range(1, min(size, _SPAN) + 1) if size % d == 0)
    if span < _SHORTEST_SPAN and size > _SPAN:  # say a prime: filled up with codes that cannot be
        filled = torch.nn.functional.pad(log_probs, (0, -size % _SPAN), value=-torch.inf)
        best, parents, codes = _best_continuations(filled, scores, min(width, lanes * size))
        return best, parents, codes.clamp(max=size - 1)
    grouped = log_probs.reshape(samples, lanes, size // span, span)
    maxima = (grouped.amax(-1) + scores.unsqueeze(-1)).flatten(1)  # (B, spans)
    if bool(maxima.isnan().any()):
        raise NotFinite("logits", "the policy's logits hold NaN or +inf")
    # in ascending order, so that a candidate's place says who comes first among equals
    spans = _top(maxima, min(width, maxima.shape[1])).sort(-1).values  # (B, S)
    lane_of_span = spans // (size // span)
    totals = (_take(grouped.flatten(1, 2), spans) + scores.gather(1, lane_of_span).unsqueeze(-1)).flatten(1)
    best = _top(totals, min(width, totals.shape[1]))  # (B, W')
    flat = spans.gather(1, best // span) * span + best % span  # index among the W * K continuations
    return totals.gather(1, best), flat // size, flat % size


def _top(
    values: Tensor,  # (B, N) float32
    count: int,
) -> Tensor:  # (B, count) int64
    """Indices of the highest values, best first, the lower index first among equals.

    `torch.topk` leaves the order of equals open; here each value and its index become one integer without equals.
    """
    bits = (values + 0.0).view(torch.int32)  # + 0.0 turns -0.0 into 0.0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # as integers in the order of the floats
    index = torch.arange(values.shape[1] - 1, -1, -1, device=values.device)
    return ((ordered.long() << 32) | index).topk(count).indices


def _take(
    rows: Tensor,  # (B, N, D)
    index: Tensor,  # (B, M)
) -> Tensor:  # (B, M, D)
    """Rows `index[b]` of each sample `b`."""
    return rows.gather(1, index.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))


def _check(policy: Policy[ContextT, StateT], trie: Trie | None, temperature: float = 1.0) -> int:
    """The number of levels, once the trie is known to be made for this policy."""
    if trie is not None and tuple(trie.level_sizes) != tuple(policy.level_sizes):
        raise ValueError(f"the trie has levels {tuple(trie.level_sizes)}, the policy {tuple(policy.level_sizes)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    return len(policy.level_sizes)
