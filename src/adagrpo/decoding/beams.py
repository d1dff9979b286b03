"""Beam search: the most probable sequences, free, constrained to a catalogue, or both at once.

    beam search      the W highest of  Σ_l log π(c_l | x, c_<l)  that a width of W keeps in sight

Prefixes that lead only to excluded items are not expanded, so a search of width `W` finds `W` items if they exist.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from adagrpo.decoding.sampling import DeadEnd, check
from adagrpo.errors import NotFinite
from adagrpo.networks import take
from adagrpo.policies.policy import ContextT, Policy, StateT
from adagrpo.semantic_ids.trie import Excluded, Trie

PART = 8  # block size of `top_of_many`; N should be a multiple
# Continuations are searched in spans of at most this many codes, see `_best_continuations`.
_SPAN = 32
_SHORTEST_SPAN = 8  # a level whose size has no divisor in this range is padded


class Beams(NamedTuple):
    """The `W` best Semantic IDs of `B` samples, best first."""

    codes: Tensor  # (B, W, L) int64, -1 where no sequence was found
    scores: Tensor  # (B, W) float32, sum of the policy's log-probabilities, -inf where no sequence was found
    log_probs: Tensor  # (B, W, L) float32, the policy's log-probability of each code, -inf where the score is
    leaves: Tensor  # (B, W) int64, of the trie; -1 where no sequence was found, or without a trie


class _Step(NamedTuple):
    scores: Tensor  # (B, W) float32, best first
    parents: Tensor  # (B, W) int64, index of the parent hypothesis
    codes: Tensor  # (B, W) int64


_Written = tuple[_Step, Tensor]  # with (B, W) float32 log-probabilities of its codes


@torch.no_grad()
def beam_search(
    policy: Policy[ContextT, StateT],
    context: ContextT,
    width: int,
    *,
    trie: Trie | None = None,  # restricts the search to its sequences, without renormalising
    excluded: Excluded | None = None,  # items that each sample's search leaves out, from `trie.excluding`
) -> Beams:
    """Return the `W` most probable Semantic IDs that a beam of width `W` finds.

    Exact if `W` is at least the number of prefixes at every level but the last. Ties are broken by the rank of the
    parent, then by the lower code, on every device. Beyond the sequences of positive probability, codes are -1, scores
    -inf. DeadEnd if a prefix has no continuation in the trie; NotFinite if logits hold NaN or +inf.
    """
    return beam_search_and_score(policy, context, width, None, trie=trie, excluded=excluded)[0]


@torch.no_grad()
def beam_search_and_score(
    policy: Policy[ContextT, StateT],
    context: ContextT,
    width: int,
    codes: Tensor | None,  # (B, G, L) of the others
    *,
    trie: Trie | None,
    excluded: Excluded | None = None,
) -> tuple[Beams, Tensor]:
    """Run `beam_search`, and score other sequences, (B, G), in the same passes."""
    levels = check(policy, trie)
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    if excluded is not None and trie is None:
        raise ValueError("excluded is of a trie, which the search must be given too")
    state = policy.start(context)
    logits = policy.logits(state)  # (B, 1, K)
    scores = logits.new_zeros(logits.shape[:2], dtype=torch.float32)  # of one empty hypothesis per sample
    nodes = torch.zeros_like(scores, dtype=torch.int64)
    asked = scores[:, :0] if codes is None else scores.new_zeros(codes.shape[:2])
    written: list[_Written] = []
    for level in range(levels):
        log_probs = logits.float().log_softmax(-1)  # of the W hypotheses, then the G other sequences
        if codes is not None:
            own = log_probs[:, log_probs.shape[1] - codes.shape[1] :] if level else log_probs
            own = own.expand(-1, codes.shape[1], -1)
            asked = asked + own.gather(-1, codes[..., level : level + 1]).squeeze(-1)
        if trie is None:
            step = _best_continuations(log_probs, scores, width)
        else:
            step, nodes = _best_children(trie, level, nodes, log_probs, scores, width, excluded)
        scores = step.scores
        written.append(_write(step, log_probs, step.parents))
        if level + 1 < levels:
            parents, chosen = step.parents, step.codes
            if codes is not None:
                last = log_probs.shape[1]
                own_parents = torch.arange(last - codes.shape[1], last, device=chosen.device).expand(codes.shape[:2])
                own_parents = own_parents if level else torch.zeros_like(own_parents)  # one is the parent of all
                parents = torch.cat([parents, own_parents], dim=1)
                chosen = torch.cat([chosen, codes[..., level]], dim=1)
            state = policy.advance(state, parents, chosen)
            logits = policy.logits(state)
    return _beams(written, scores, width, None if trie is None else nodes), asked


@torch.no_grad()
def beam_search_both(
    policy: Policy[ContextT, StateT],
    context: ContextT,
    width: int,
    *,
    trie: Trie,
    constrained_width: int | None = None,  # None: the same
    excluded: Excluded | None = None,
) -> tuple[Beams, Beams]:
    """Return constrained and free beams, as of two searches, evaluating shared prefixes once."""
    levels = check(policy, trie)
    constrained_width = width if constrained_width is None else constrained_width
    for name, value in (("width", width), ("constrained_width", constrained_width)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    state = policy.start(context)
    logits = policy.logits(state)
    inside_scores = free_scores = logits.new_zeros(logits.shape[:2], dtype=torch.float32)
    nodes = hypotheses = torch.zeros_like(inside_scores, dtype=torch.int64)
    # nodes (B, J), of the constrained search first; hypotheses (B, W): indices of the free search's among the J
    inside_written: list[_Written] = []
    free_written: list[_Written] = []
    for level in range(levels):
        log_probs = logits.float().log_softmax(-1)  # (B, J, K)
        own_nodes = nodes[:, : inside_scores.shape[1]]
        inside, inside_nodes = _best_children(
            trie, level, own_nodes, log_probs, inside_scores, constrained_width, excluded
        )
        free = _best_continuations(log_probs, free_scores, width, hypotheses)
        origins = hypotheses.gather(1, free.parents)
        inside_scores, free_scores = inside.scores, free.scores
        inside_written.append(_write(inside, log_probs, inside.parents))
        free_written.append(_write(free, log_probs, origins))
        if level + 1 < levels:
            free_nodes = trie.child(level, nodes.gather(1, origins), free.codes)
            hypotheses, parents, codes, nodes = _shared(
                inside, inside_nodes, free._replace(parents=origins), free_nodes
            )
            state = policy.advance(state, parents, codes)
            logits = policy.logits(state)
    inside_beams = _beams(inside_written, inside_scores, constrained_width, inside_nodes)
    return inside_beams, _beams(free_written, free_scores, width, None)


def _shared(
    inside: _Step, inside_nodes: Tensor, free: _Step, free_nodes: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Merge the hypotheses of both searches; `parents` index the previous merged ones.

    (B, W) index of each free hypothesis among the J; their (B, J) parents, codes, and nodes, -1 outside the trie.
    """
    samples, count = inside_nodes.shape
    ordered, order = inside_nodes.sort(dim=1)
    index = torch.searchsorted(ordered, free_nodes).clamp(max=count - 1)
    is_constrained = (ordered.gather(1, index) == free_nodes) & (free_nodes >= 0)
    dead = free.scores == -torch.inf  # of probability 0, so its index does not matter
    index = order.gather(1, index).masked_fill(~is_constrained, 0)
    alone = ~(is_constrained | dead)
    number = alone.cumsum(1) - 1
    extra = int(number.max()) + 1
    hypotheses = torch.where(alone, count + number, index)
    target = torch.where(alone, hypotheses, count + extra)  # the others go to an extra column, which is dropped

    def joined(first: Tensor, second: Tensor, filling: int) -> Tensor:
        behind = first.new_full((samples, extra + 1), filling)
        return torch.cat([first, behind], dim=1).scatter_(1, target, second)[:, :-1]

    return (
        hypotheses,
        joined(inside.parents, free.parents, 0),
        joined(inside.codes, free.codes, 0),
        joined(inside_nodes, free_nodes, -1),
    )


# step (B, W); log_probs (B, J, K) of the next codes; origins (B, W) index of each one's parent among the J
def _write(step: _Step, log_probs: Tensor, origins: Tensor) -> _Written:
    return step, log_probs.flatten(1).gather(1, origins * log_probs.shape[2] + step.codes)


# scores (B, W); nodes (B, W) of the last level
def _beams(written: list[_Written], scores: Tensor, width: int, nodes: Tensor | None) -> Beams:
    last, of_last = written[-1]
    codes, log_probs, parents = [last.codes], [of_last], last.parents
    for before, of_before in reversed(written[:-1]):
        codes.append(before.codes.gather(1, parents))
        log_probs.append(of_before.gather(1, parents))
        parents = before.parents.gather(1, parents)
    nothing, missing, pad = scores == -torch.inf, width - scores.shape[1], torch.nn.functional.pad
    leaves = torch.full_like(last.codes, -1) if nodes is None else nodes.masked_fill(nothing, -1)
    marks = nothing.unsqueeze(-1)
    return Beams(
        pad(torch.stack(codes[::-1], -1).masked_fill(marks, -1), (0, 0, 0, missing), value=-1),
        pad(scores, (0, missing), value=-torch.inf),
        pad(torch.stack(log_probs[::-1], -1).masked_fill(marks, -torch.inf), (0, 0, 0, missing), value=-torch.inf),
        pad(leaves, (0, missing), value=-1),
    )


def _best_children(
    trie: Trie,
    level: int,
    nodes: Tensor,  # (B, W)
    log_probs: Tensor,  # (B, J, K), J >= W; of the first W hypotheses
    scores: Tensor,  # (B, W)
    width: int,
    excluded: Excluded | None = None,
) -> tuple[_Step, Tensor]:  # with the node of each hypothesis (B, W')
    (samples, hypotheses), (_, stride, size) = nodes.shape, log_probs.shape
    branches = trie.branches(level, nodes)
    counts = branches.counts.view(samples, hypotheses)
    if not bool(counts.all()) and not bool(((counts > 0) | (scores == -torch.inf)).all()):
        raise DeadEnd(f"the trie allows no code at level {level + 1} after a prefix that it allowed before")
    of_sample = counts.sum(1)  # (B,)
    first = of_sample.cumsum(0) - of_sample
    rows = torch.repeat_interleave(of_sample)  # (T,)
    parents = branches.parents if stride == hypotheses else branches.parents + rows * (stride - hypotheses)
    flat = parents * size + branches.codes
    # index_select is three times as fast as tensor indexing on a CPU
    totals = scores.flatten().index_select(0, branches.parents) + log_probs.flatten().index_select(0, flat)
    if bool(totals.isnan().any()):
        raise NotFinite("logits", "the policy's logits hold NaN or +inf")
    if excluded is not None:
        totals = totals.masked_fill(trie.closed(level + 1, branches.nodes, rows, excluded), -torch.inf)
    most = int(of_sample.max())
    room = -(-most // PART) * PART
    padded = totals.new_full((samples, room), -torch.inf)
    before = torch.arange(samples, device=rows.device) * room - first
    padded.view(-1).scatter_(0, torch.arange(len(totals), device=rows.device) + before.index_select(0, rows), totals)
    best = top_of_many(padded, min(width, most))  # (B, W')
    filling = best >= of_sample.unsqueeze(1)
    chosen = (best + first.unsqueeze(1)).masked_fill_(filling, 0).flatten()
    origins, codes, found = (of.index_select(0, chosen).view_as(best) for of in branches[1:])
    step = _Step(
        padded.gather(1, best), (origins % hypotheses).masked_fill_(filling, 0), codes.masked_fill_(filling, 0)
    )
    return step, found.masked_fill_(filling, -1)


def _best_continuations(
    log_probs: Tensor,  # (B, J, K)
    scores: Tensor,  # (B, W)
    width: int,
    hypotheses: Tensor | None = None,  # (B, W) indices among the J; None: the same
) -> _Step:  # parents are indices among the W
    """The `W' = min(width, W * K)` best continuations of all hypotheses, best first.

    Only the `W'` spans of codes with the highest maxima are sorted.
    """
    samples, count, size = log_probs.shape
    span = max(d for d in range(1, min(size, _SPAN) + 1) if size % d == 0)
    if span < _SHORTEST_SPAN and size > _SPAN:  # e.g. a prime: pad with impossible codes
        filled = torch.nn.functional.pad(log_probs, (0, -size % _SPAN), value=-torch.inf)
        step = _best_continuations(filled, scores, min(width, scores.shape[1] * size), hypotheses)
        return step._replace(codes=step.codes.clamp(max=size - 1))
    parts = size // span  # spans of a hypothesis
    grouped = log_probs.reshape(samples, count * parts, span)
    maxima = grouped.amax(-1).view(samples, count, parts)
    if hypotheses is not None:
        maxima = take(maxima, hypotheses)
    maxima = (maxima + scores.unsqueeze(-1)).flatten(1)  # (B, W * parts)
    if bool(maxima.isnan().any()):
        raise NotFinite("logits", "the policy's logits hold NaN or +inf")
    # ascending, so that ties are broken by index
    spans = top(maxima, min(width, maxima.shape[1])).sort(-1).values  # (B, S)
    parents = spans // parts
    rows = spans if hypotheses is None else hypotheses.gather(1, parents) * parts + spans % parts
    totals = (take(grouped, rows) + scores.gather(1, parents).unsqueeze(-1)).flatten(1)
    best = top(totals, min(width, totals.shape[1]))  # (B, W')
    flat = spans.gather(1, best // span) * span + best % span  # index among the W * K continuations
    return _Step(totals.gather(1, best), flat // size, flat % size)


def top(values: Tensor, count: int) -> Tensor:  # values (B, N) float32 -> (B, count) int64
    """Return indices of the highest values, best first, ties by index."""
    bits = (values + 0.0).view(torch.int32)  # + 0.0 turns -0.0 into 0.0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # as integers in the order of the floats
    index = torch.arange(values.shape[1] - 1, -1, -1, device=values.device)
    return ((ordered.long() << 32) | index).topk(count).indices


def top_of_many(values: Tensor, count: int) -> Tensor:  # values (B, N) float32 -> (B, count) int64
    """Return `top`, fast for N far above `count`."""
    if values.shape[1] % PART or values.shape[1] < 4 * PART * count:
        return top(values, count)
    parts = values.view(len(values), -1, PART)
    blocks = top(parts.amax(-1), count).sort(-1).values  # (B, count), ascending, since ties are broken by index
    best = top(take(parts, blocks).flatten(1), count)
    return blocks.gather(1, best // PART) * PART + best % PART
