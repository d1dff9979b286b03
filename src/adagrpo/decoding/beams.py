"""Beam search: the most probable sequences, free, held to a catalogue, or both at once.

    beam search      the W highest of  Σ_l log π(c_l | x, c_<l)  that a width of W keeps in sight

A search that is held to the catalogue looks at the children of its prefixes alone, but ranks them by the policy's own
free probability, as Hugging Face's `generate` does with a prefix function.

A free and a held search of one context write mostly the same prefixes. `beam_search_both` therefore lets them share
hypotheses: those of the held search, and behind them what the free one alone has. Each prefix meets the policy once,
and each search finds what it would have found by itself.

Items can be ruled out for each sample. They are never written, and neither is a prefix that only they complete, so that
no hypothesis is lost to them: a search of `W` hypotheses finds `W` items wherever the trie holds as many others.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from adagrpo.decoding.hypotheses import PART, DeadEnd, check, top, top_of_many
from adagrpo.errors import NotFinite
from adagrpo.networks.layers import take
from adagrpo.policies.policy import Context, DecoderState, Policy
from adagrpo.semantic_ids.trie import Excluded, Trie

ContextT = TypeVar("ContextT", bound=Context)
StateT = TypeVar("StateT", bound=DecoderState)

# Continuations are searched in spans of at most this many codes, see `_best_continuations`.
_SPAN = 32
_SHORTEST_SPAN = 8  # a level whose size has no divisor from here to there is filled up


class Beams(NamedTuple):
    """The `W` best Semantic IDs that beam search found for each of `B` samples, best first."""

    codes: Tensor  # (B, W, L) int64, -1 where no sequence was found
    scores: Tensor  # (B, W) float32, sum of the policy's log-probabilities, -inf where no sequence was found
    log_probs: Tensor  # (B, W, L) float32, the policy's log-probability of each code, -inf where scores are
    leaves: Tensor  # (B, W) int64, of the trie that the search was held to; -1 where nothing was found, or held


class _Step(NamedTuple):
    """The hypotheses of a search after one more code."""

    scores: Tensor  # (B, W) float32, best first
    parents: Tensor  # (B, W) int64, the hypothesis that each continues
    codes: Tensor  # (B, W) int64


class _Written(NamedTuple):
    """The code that each hypothesis of a search has written at one level; what is before it, its parent has."""

    parents: Tensor  # (B, W) int64
    codes: Tensor  # (B, W) int64
    log_probs: Tensor  # (B, W) float32


@torch.no_grad()
def beam_search(
    policy: Policy[ContextT, StateT],
    context: ContextT,
    width: int,
    *,
    trie: Trie | None = None,
    excluded: Excluded | None = None,
) -> Beams:
    """Find the `W` most probable Semantic IDs of each sample, as far as a beam of `W` hypotheses sees them.

    The search is exact where `W` is at least the number of prefixes at every level but the last. Equal scores are
    ordered by the rank of the parent hypothesis, then by the lower code, on every device.

    Args:
        context: `B` encoded samples.
        width: `W`, hypotheses kept at each level and sequences returned.
        trie: where given, only sequences of the trie are found. They are ranked by the policy's own free probability,
            not by one renormalised over what the trie allows.
        excluded: of the trie's `excluding`: items that each sample's search leaves out.

    Returns:
        Beams, best first. Where fewer than `W` sequences of positive probability exist, the hypotheses left over hold
        codes -1 and score -inf.

    Raises:
        ValueError: `width` is below 1, the trie's levels are not the policy's, or items are excluded without a trie.
        DeadEnd: the trie allows no continuation of one of its own prefixes.
        NotFinite: the policy's logits hold NaN, or +inf.
    """
    return _search(policy, context, width, trie, excluded, None)[0]


@torch.no_grad()
def beam_search_and_score(
    policy: Policy[ContextT, StateT],
    context: ContextT,
    width: int,
    codes: Tensor,  # (B, G, L)
    *,
    trie: Trie,
    excluded: Excluded | None = None,
) -> tuple[Beams, Tensor]:  # (B, G)
    """Search, and score other sequences in the same passes: for a few histories `Policy.score` takes longer.

    Args:
        codes: (B, G, L) sequences.
        policy, context, width, trie, excluded: as in `beam_search`.

    Returns:
        What `beam_search` finds, and the (B, G) float32 log-probabilities of the sequences.

    Raises:
        ValueError, DeadEnd, NotFinite: as `beam_search` does.
    """
    return _search(policy, context, width, trie, excluded, codes)


def _search(
    policy: Policy[ContextT, StateT],
    context: ContextT,
    width: int,
    trie: Trie | None,
    excluded: Excluded | None,
    others: Tensor | None,  # (B, G, L)
) -> tuple[Beams, Tensor]:
    """`beam_search`, and the (B, G) log-probabilities of other sequences; G is 0 without them."""
    levels = check(policy, trie)
    _check_width("width", width)
    if excluded is not None and trie is None:
        raise ValueError("excluded is of a trie, which the search must be given too")
    state = policy.start(context)
    logits = policy.logits(state)  # (B, 1, K)
    scores, nodes = _root(logits)
    asked = scores[:, :0] if others is None else scores.new_zeros(others.shape[:2])
    written: list[_Written] = []
    for level in range(levels):
        log_probs = logits.float().log_softmax(-1)  # of the W hypotheses, and of the G other sequences behind them
        if others is not None:
            own = log_probs[:, log_probs.shape[1] - others.shape[1] :] if level else log_probs
            own = own.expand(-1, others.shape[1], -1)
            asked = asked + own.gather(-1, others[..., level : level + 1]).squeeze(-1)
        if trie is None:
            step = _best_continuations(log_probs, scores, width)
        else:
            step, nodes = _best_children(trie, level, nodes, log_probs, scores, width, excluded)
        scores = step.scores
        written.append(_write(step, log_probs, step.parents))
        if level + 1 < levels:
            parents, codes = step.parents, step.codes
            if others is not None:
                last = log_probs.shape[1]
                places = torch.arange(last - others.shape[1], last, device=codes.device).expand(others.shape[:2])
                places = places if level else torch.zeros_like(places)  # one hypothesis is the parent of all
                parents, codes = torch.cat([parents, places], dim=1), torch.cat([codes, others[..., level]], dim=1)
            state = policy.advance(state, parents, codes)
            logits = policy.logits(state)
    return _beams(written, scores, width, None if trie is None else nodes), asked


@torch.no_grad()
def beam_search_both(
    policy: Policy[ContextT, StateT],
    context: ContextT,
    width: int,
    *,
    trie: Trie,
    held_width: int | None = None,
    excluded: Excluded | None = None,
) -> tuple[Beams, Beams]:
    """Search with the trie and without it, at little more than the price of one of them.

    Args:
        context: `B` encoded samples.
        width: `W` of the free search.
        trie: what the other search is held to.
        held_width: `W` of that one; None is the same.
        excluded: of the trie's `excluding`: items that the held search of each sample leaves out.

    Returns:
        The beams that are held to the trie, and the free ones.

    Raises:
        ValueError, DeadEnd, NotFinite: as `beam_search` does.
    """
    levels = check(policy, trie)
    _check_width("width", width)
    held_width = width if held_width is None else held_width
    _check_width("held_width", held_width)
    state = policy.start(context)
    logits = policy.logits(state)
    held_scores, nodes = _root(logits)  # nodes (B, J); the first are the held search's
    free_scores, hypotheses = _root(logits)  # hypotheses (B, W): where the free search's are among all
    held_written: list[_Written] = []
    free_written: list[_Written] = []
    for level in range(levels):
        log_probs = logits.float().log_softmax(-1)  # (B, J, K)
        of_held = nodes[:, : held_scores.shape[1]]
        held, held_nodes = _best_children(trie, level, of_held, log_probs, held_scores, held_width, excluded)
        free = _best_continuations(log_probs, free_scores, width, hypotheses)
        origins = hypotheses.gather(1, free.parents)
        held_scores, free_scores = held.scores, free.scores
        held_written.append(_write(held, log_probs, held.parents))
        free_written.append(_write(free, log_probs, origins))
        if level + 1 < levels:
            free_nodes = trie.child(level, nodes.gather(1, origins), free.codes)
            shared = _shared(held, held_nodes, free._replace(parents=origins), free_nodes)
            hypotheses, nodes = shared.hypotheses, shared.nodes
            state = policy.advance(state, shared.parents, shared.codes)
            logits = policy.logits(state)
    held_beams = _beams(held_written, held_scores, held_width, held_nodes)
    return held_beams, _beams(free_written, free_scores, width, None)


class _Shared(NamedTuple):
    """Hypotheses that serve two searches: those of the held one, then what the free one alone has."""

    hypotheses: Tensor  # (B, W) int64, where each hypothesis of the free search is among the J
    parents: Tensor  # (B, J) int64
    codes: Tensor  # (B, J) int64
    nodes: Tensor  # (B, J) int64, -1 for a prefix that no item has


def _shared(held: _Step, held_nodes: Tensor, free: _Step, free_nodes: Tensor) -> _Shared:
    """Lay out the hypotheses of both searches; `parents` of both are places among the hypotheses before."""
    samples, count = held_nodes.shape
    ordered, order = held_nodes.sort(dim=1)
    place = torch.searchsorted(ordered, free_nodes).clamp(max=count - 1)
    is_held = (ordered.gather(1, place) == free_nodes) & (free_nodes >= 0)
    dead = free.scores == -torch.inf  # nothing will come of it wherever it is put
    place = order.gather(1, place).masked_fill(~is_held, 0)
    alone = ~(is_held | dead)
    number = alone.cumsum(1) - 1
    extra = int(number.max()) + 1
    hypotheses = torch.where(alone, count + number, place)
    target = torch.where(alone, hypotheses, count + extra)  # what has a place goes to one more, to drop

    def joined(first: Tensor, second: Tensor, filling: int) -> Tensor:
        behind = first.new_full((samples, extra + 1), filling)
        return torch.cat([first, behind], dim=1).scatter_(1, target, second)[:, :-1]

    return _Shared(
        hypotheses,
        joined(held.parents, free.parents, 0),
        joined(held.codes, free.codes, 0),
        joined(held_nodes, free_nodes, -1),
    )


def _root(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (B, 1) and nodes (B, 1) of one hypothesis a sample in which nothing is written."""
    shape, device = logits.shape[:2], logits.device
    return torch.zeros(shape, device=device), torch.zeros(shape, dtype=torch.int64, device=device)


def _write(
    step: _Step,  # (B, W)
    log_probs: Tensor,  # (B, J, K) of the codes that may follow
    origins: Tensor,  # (B, W) which of the J each hypothesis of the step continues
) -> _Written:
    """One more code."""
    new = log_probs.flatten(1).gather(1, origins * log_probs.shape[2] + step.codes)
    return _Written(step.parents, step.codes, new)


def _beams(
    written: list[_Written],
    scores: Tensor,  # (B, W)
    width: int,
    nodes: Tensor | None,  # (B, W) of the last level
) -> Beams:
    """Read what was written from the last code back; mark what found nothing, and fill up to what was asked for."""
    last = written[-1]
    codes, log_probs, places = [last.codes], [last.log_probs], last.parents
    for before in reversed(written[:-1]):
        codes.append(before.codes.gather(1, places))
        log_probs.append(before.log_probs.gather(1, places))
        places = before.parents.gather(1, places)
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
) -> tuple[_Step, Tensor]:  # and the node of each hypothesis (B, W')
    """The best continuations that the trie knows, best first; most of the codes of a level are none."""
    (samples, hypotheses), (_, stride, size) = nodes.shape, log_probs.shape
    branches = trie.branches(level, nodes)
    counts = branches.counts.view(samples, hypotheses)
    if not bool(((counts > 0) | (scores == -torch.inf)).all()):
        raise DeadEnd(f"the trie allows no code at level {level + 1} after a prefix that it allowed before")
    of_sample = counts.sum(1)  # (B,)
    first = of_sample.cumsum(0) - of_sample
    rows = torch.repeat_interleave(of_sample)  # (T,)
    parents = branches.parents if stride == hypotheses else branches.parents + rows * (stride - hypotheses)
    flat = parents * size + branches.codes
    # index_select: on a CPU indexing by a tensor takes three times as long
    totals = scores.flatten().index_select(0, branches.parents) + log_probs.flatten().index_select(0, flat)
    if bool(totals.isnan().any()):
        raise NotFinite("logits", "the policy's logits hold NaN or +inf")
    if excluded is not None:
        totals = totals.masked_fill(trie.closed(level + 1, branches.nodes, rows, excluded), -torch.inf)
    most = int(of_sample.max())
    room = -(-most // PART) * PART
    padded = totals.new_full((samples, room), -torch.inf)
    before = torch.arange(samples, device=rows.device) * room - first
    places = torch.arange(len(totals), device=rows.device) + before.index_select(0, rows)
    padded.view(-1).scatter_(0, places, totals)
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
    hypotheses: Tensor | None = None,  # (B, W) which of the J each is; None: they are the J
) -> _Step:  # parents count the W
    """The `W' = min(width, W * K)` best continuations of all hypotheses, best first.

    The codes of a hypothesis are cut into spans. The best `W'` continuations lie in the `W'` spans with the highest
    maxima (any other span has `W'` continuations ahead of it), so only those are sorted, and the W * K totals are never
    written out. On a CPU that settles equals at the price of one `torch.topk` over the totals, which does not; settling
    them over all totals takes five times as long, and a top-k in each hypothesis first takes four.
    """
    samples, count, size = log_probs.shape
    span = max(d for d in range(1, min(size, _SPAN) + 1) if size % d == 0)
    if span < _SHORTEST_SPAN and size > _SPAN:  # say a prime: filled up with codes that cannot be
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
    # in ascending order, so that a candidate's place says who comes first among equals
    spans = top(maxima, min(width, maxima.shape[1])).sort(-1).values  # (B, S)
    parents = spans // parts
    places = spans if hypotheses is None else hypotheses.gather(1, parents) * parts + spans % parts
    totals = (take(grouped, places) + scores.gather(1, parents).unsqueeze(-1)).flatten(1)
    best = top(totals, min(width, totals.shape[1]))  # (B, W')
    flat = spans.gather(1, best // span) * span + best % span  # index among the W * K continuations
    return _Step(totals.gather(1, best), flat // size, flat % size)


def _check_width(name: str, width: int) -> None:
    if width < 1:
        raise ValueError(f"{name} must be at least 1, got {width}")
