"""Lists of distinct items, sampled from the policy, with exact probabilities.

    g_i = φ_i + Gumbel(0),   φ_i = log π(i),   the list is the k items of the highest g, best first

This is sampling without replacement (Plackett-Luce, the Gumbel-top-k trick). The search descends the trie and keeps the
k + 1 prefixes of the highest g, where the g of a prefix is the maximum over its leaves and its children's g are drawn
given that maximum (Kool, van Hoof and Welling 2019).

    log P(rank j is i_j | those above)     = φ_{i_j} - log(Σ_{m≥j} exp φ_{i_m} + ρ)
    log P(i in the list | threshold κ)     = log(1 - exp(-exp(φ_i - κ))),   κ the g of the item after the last

ρ is the probability of all other items, summed over pruned prefixes. π renormalises the softmax of each level, at the
given temperature, over codes that lead to an eligible item. The noise is a function of a sample's seed and the node, so
a list does not depend on its batch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from adagrpo.decoding.sampling import check
from adagrpo.errors import NotFinite
from adagrpo.policies.policy import ContextT, Policy, StateT
from adagrpo.semantic_ids.trie import Branches, Excluded, Trie

# of SplitMix64 (Steele et al. 2014), as signed numbers of 64 bits
GAMMA, FIRST, SECOND = 0x9E3779B97F4A7C15 - 2**64, 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


class Slates(NamedTuple):
    """`k + 1` distinct items for `B` samples, in the order of the draw.

    The last item gives the threshold and is not in the list. Missing items are -1 and -inf.
    """

    items: Tensor  # (B, k + 1) int64
    log_probs: Tensor  # (B, k + 1) float64, φ: of drawing the item first
    keys: Tensor  # (B, k + 1) float64, g, descending
    rest: Tensor  # (B,) float64, log ρ: of drawing none of these items first


class _Kept(NamedTuple):
    nodes: Tensor  # (B, W) int64, -1 where there is none
    log_probs: Tensor  # (B, W) float64
    keys: Tensor  # (B, W) float64
    parents: Tensor  # (B, W) int64, index of the parent among the previous prefixes
    codes: Tensor  # (B, W) int64
    rest: Tensor  # (B,) float64, log-probability of items under no kept prefix


@torch.no_grad()
def draw_slates(
    policy: Policy[ContextT, StateT],
    context: ContextT,
    count: int,
    seeds: Tensor,  # (B,) int64
    *,
    trie: Trie,
    temperature: float = 1.0,
    excluded: Excluded | None = None,
) -> Slates:
    """Draw `k` items without replacement, and the one after them; NotFinite if logits hold NaN or +inf."""
    levels = check(policy, trie, temperature)
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if seeds.ndim != 1 or seeds.dtype != torch.int64:
        raise ValueError(f"seeds must be (B,) int64, got {seeds.dtype} of {tuple(seeds.shape)}")
    state = policy.start(context)
    root = torch.zeros(len(seeds), 1, dtype=torch.int64, device=seeds.device)
    keys = _gumbel(seeds.unsqueeze(1), root)
    never = torch.full_like(keys, -torch.inf)
    kept = _Kept(root, torch.zeros_like(keys), keys, root, root, never[:, 0])
    if len(trie.items) == 0:  # nothing can be drawn
        kept = kept._replace(nodes=root - 1, log_probs=never, keys=never)
    for level in range(levels):
        kept = _children(trie, level, kept, policy.logits(state).double() / temperature, seeds, count + 1, excluded)
        if level + 1 < levels:
            state = policy.advance(state, kept.parents, kept.codes)
    missing = count + 1 - kept.nodes.shape[1]
    items = torch.nn.functional.pad(trie.leaf_items(kept.nodes), (0, missing), value=-1)
    log_probs, keys = (
        torch.nn.functional.pad(values, (0, missing), value=-torch.inf) for values in (kept.log_probs, kept.keys)
    )
    return Slates(items, log_probs, keys, kept.rest)


@torch.no_grad()
def slate_log_probs(
    policy: Policy[ContextT, StateT],
    context: ContextT,
    items: Tensor,  # (B, N) int64
    *,
    trie: Trie,
    temperature: float = 1.0,
    excluded: Excluded | None = None,
) -> Tensor:  # (B, N) float64
    """Return the log-probability of each item at its rank in given lists, as of `draw_slates`.

    (B, N), given the items above; -inf for items that are absent or not eligible.
    """
    return rank_log_probs(*_followed(policy, context, items, trie, temperature, excluded))


def _followed(
    policy: Policy[ContextT, StateT],
    context: ContextT,
    items: Tensor,  # (B, N)
    trie: Trie,
    temperature: float,
    excluded: Excluded | None,
) -> tuple[Tensor, Tensor]:
    """φ of given items (B, N), and log ρ of all others (B,)."""
    levels = check(policy, trie, temperature)
    rest = torch.full((len(items),), -torch.inf, dtype=torch.float64, device=items.device)
    if len(trie.items) == 0:
        return rest.unsqueeze(1).expand(items.shape).clone(), rest
    items = items.clamp(-1, len(trie.leaf_of) - 1)  # the last index is no item
    real = (items >= 0) & (trie.leaf_of[items] >= 0)
    written, leaves = list[Tensor](), trie.leaf_of[items]
    for level in reversed(range(levels)):
        written.append(trie.codes[level][leaves])
        leaves = torch.searchsorted(trie.first[level], leaves, right=True) - 1
    codes = torch.stack(written[::-1], dim=-1)  # (B, N, L); arbitrary for items outside the catalogue
    nodes, total = torch.zeros_like(items), torch.zeros(items.shape, dtype=torch.float64, device=items.device)
    state = policy.start(context)
    for level in range(levels):
        logits = policy.logits(state).double().expand(-1, items.shape[1], -1) / temperature
        branches, _, shares = _shares(trie, level, nodes, logits, excluded)
        of_codes = total.new_full(logits.shape, -torch.inf).flatten(0, 1)
        of_codes[branches.parents, branches.codes] = shares
        below = trie.child(level, nodes, codes[..., level])
        rest = torch.logaddexp(rest, _beside(branches, nodes, below.masked_fill(~real, -1), total, shares))
        total += of_codes.view(logits.shape).gather(2, codes[..., level : level + 1])[..., 0]
        if level + 1 < levels:
            nodes = below
            parents = torch.arange(items.shape[1], device=items.device).expand_as(items)
            state = policy.advance(state, torch.zeros_like(items) if level == 0 else parents, codes[..., level])
    return total.masked_fill(~real, -torch.inf), rest


def _beside(
    branches: Branches,  # T children of B * N prefixes
    nodes: Tensor,  # (B, N) the prefixes, possibly repeated
    below: Tensor,  # (B, N) the child that is followed, or -1
    log_probs: Tensor,  # (B, N) of the prefixes
    shares: Tensor,  # (T,) of the children
) -> Tensor:  # (B,)
    """Log-probability of the children not followed, each prefix once."""
    samples, count = nodes.shape
    real = below >= 0
    same = (nodes.unsqueeze(2) == nodes.unsqueeze(1)) & real.unsqueeze(1)  # (B, N, N)
    taken = real & (same.to(torch.uint8).argmax(2) == torch.arange(count, device=nodes.device))
    mine = taken.flatten()[branches.parents].nonzero().squeeze(1)
    parents = branches.parents[mine]
    rows = parents // count
    left = log_probs.flatten()[parents] + shares[mine]
    followed = (below[rows] == branches.nodes[mine].unsqueeze(1)).any(1)
    return _log_sums(left.masked_fill(followed, -torch.inf), rows, samples)


# log_probs (B, n) float64, in the order of the draw; rest (B,) float64 -> (B, n) float64
def rank_log_probs(log_probs: Tensor, rest: Tensor) -> Tensor:
    """Return log-probabilities at the ranks, given the items above, from those of drawing each first.

    -inf where there is none.
    """
    left = torch.cat([rest.unsqueeze(1), log_probs.flip(1)], 1).logcumsumexp(1)[:, 1:].flip(1)
    return torch.where(log_probs == -torch.inf, -torch.inf, log_probs - left)


def inclusion_log_prob(log_prob: float, threshold: float) -> float:
    """Return the log-probability that an item is in a list, given the threshold, g of the first one left out."""
    distance = log_prob - threshold
    if distance < -36.0:  # 1 - exp(-x) is x in double precision
        return distance
    return math.log(-math.expm1(-math.exp(min(distance, 700.0))))


def _children(
    trie: Trie,
    level: int,
    kept: _Kept,
    logits: Tensor,  # (B, W, K) float64
    seeds: Tensor,  # (B,)
    width: int,
    excluded: Excluded | None,
) -> _Kept:
    samples, hypotheses = kept.nodes.shape
    if bool((kept.nodes < 0).all()):  # nothing can be drawn
        return kept
    branches, rows, shares = _shares(trie, level, kept.nodes, logits, excluded)
    log_probs = kept.log_probs.flatten()[branches.parents] + shares
    before = sum(trie.node_counts[: level + 1])
    free = log_probs + _gumbel(seeds[rows], before + branches.nodes)
    best = _of_parents(free, branches.parents, samples * hypotheses)[branches.parents]
    # the same draw, given its maximum: -log(exp(-maximum) - exp(-best) + exp(-free)) (Kool et al., appendix B.3)
    maximum = kept.keys.flatten()[branches.parents]
    gap = maximum - free + torch.log1p(-(free - best).exp())  # -inf for the highest one itself
    keys = maximum - gap.clamp(min=0) - torch.log1p((-gap.abs()).exp())
    keys = keys.masked_fill(free == -torch.inf, -torch.inf)
    counts = torch.bincount(rows, minlength=samples)
    first = counts.cumsum(0) - counts
    padded = keys.new_full((samples, max(1, int(counts.max()))), -torch.inf)
    padded[rows, torch.arange(len(rows), device=rows.device) - first[rows]] = keys
    highest, columns = padded.topk(min(width, padded.shape[1]), dim=1)
    real = highest > -torch.inf
    chosen = (columns + first.unsqueeze(1)).masked_fill(~real, 0)
    left = log_probs.index_fill(0, chosen[real], -torch.inf)
    return _Kept(
        branches.nodes[chosen].masked_fill(~real, -1),
        log_probs[chosen].masked_fill(~real, -torch.inf),
        highest,
        (branches.parents[chosen] % hypotheses).masked_fill(~real, 0),
        branches.codes[chosen].masked_fill(~real, 0),
        torch.logaddexp(kept.rest, _log_sums(left, rows, samples)),
    )


def _shares(
    trie: Trie,
    level: int,
    nodes: Tensor,  # (B, W)
    logits: Tensor,  # (B, W, K) float64
    excluded: Excluded | None,
) -> tuple[Branches, Tensor, Tensor]:
    """The T children of B * W prefixes, their samples (T,), and log-probabilities given their parents (T,)."""
    samples, hypotheses = nodes.shape
    branches = trie.branches(level, nodes)
    rows = branches.parents // hypotheses
    scores = logits.reshape(samples * hypotheses, -1)[branches.parents, branches.codes]
    if bool((scores.isnan() | (scores == torch.inf)).any()):
        raise NotFinite("logits", "the policy's logits hold NaN or +inf")
    if excluded is not None:
        scores = scores.masked_fill(trie.closed(level + 1, branches.nodes, rows, excluded), -torch.inf)
    totals = _log_sums(scores, branches.parents, samples * hypotheses)
    return branches, rows, (scores - totals[branches.parents]).nan_to_num(-torch.inf, neginf=-torch.inf)


def _of_parents(values: Tensor, parents: Tensor, count: int) -> Tensor:
    return values.new_full((count,), -torch.inf).scatter_reduce(0, parents, values, "amax")


def _log_sums(values: Tensor, owners: Tensor, count: int) -> Tensor:
    highest = _of_parents(values, owners, count)
    parts = (values - highest[owners]).exp().nan_to_num(0.0)
    return highest + parts.new_zeros(count).index_add(0, owners, parts).log()


# seeds (...) int64; number (...) int64, distinct for each seed -> (...) float64
def _gumbel(seeds: Tensor, number: Tensor) -> Tensor:
    """Gumbel noise from output `number` of SplitMix64 with that seed, as a uniform of 53 bits."""

    def right(bits: Tensor, count: int) -> Tensor:  # without the sign
        return (bits >> count) & ((1 << (64 - count)) - 1)

    bits = seeds + GAMMA * (number + 1)
    bits = (bits ^ right(bits, 30)) * FIRST
    bits = (bits ^ right(bits, 27)) * SECOND
    uniforms = (right(bits ^ right(bits, 31), 11).double() + 0.5) * 2.0**-53
    return -(-uniforms.log()).log()
