"""First step of a group: its rollouts, `G` Semantic IDs per sample.

    drawn       o_bg ~ π(· | x_b), g = 1..G              unbiased: what the policy-gradient identity is about
    beam        the policy's own top G                    deterministic and biased, see `beam_rollouts`
    injected    the last rollout becomes the logged item  where the group does not hold it already

GRPO: Shao et al. 2024, arXiv 2402.03300. Log-probabilities are those of the distribution that was sampled, with its
constraint and temperature. Codes that name no item stay in the group as item -1. Of several processes each draws and
scores some rows, and all end up with every row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adagrpo.config import ObjectiveConfig
from adagrpo.decoding import beam_search, sample, score_sequences
from adagrpo.policies.policy import Context, ContextT, Policy, StateT
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.semantic_ids.trie import Trie
from adagrpo.types import Histories, Rollouts

Compute = Callable[[Tensor | None], Sequence[Tensor]]  # the parts of tensors at the given rows of a step; None: all
# returns whole tensors, from zeros of their shapes and dtypes that processes fill, each at its own rows
Division = Callable[[Sequence[Tensor], Compute], Sequence[Tensor]]


def undivided(wholes: Sequence[Tensor], compute: Compute) -> Sequence[Tensor]:
    """Compute all rows in one process."""
    return compute(None)


class DrawnGroups(NamedTuple):
    """Groups before any reward."""

    histories: Histories  # (B, T)
    targets: Tensor  # (B,) int64 logged items; all -1 at the ends of histories
    sampled: Rollouts  # (B, G, L) as they were drawn
    rollouts: Rollouts  # (B, G, L) the same, or with the logged item in every group
    target_codes: Tensor | None  # (B, L) int64; None at the ends of histories
    target_log_probs: Tensor | None  # (B, L) under the sampling distribution, if needed


def draw_groups(
    policy: Policy[Any, Any],
    catalog: Catalog,
    histories: Histories,  # (B, T)
    targets: Tensor,  # (B,) logged items, or -1 everywhere
    options: ObjectiveConfig,
    generator: torch.Generator,
    *,
    score_targets: bool = False,
    division: Division = undivided,
) -> DrawnGroups:
    """Draw one group per sample; each history is encoded once.

    ValueError if a logged item is delisted under a constrained distribution.
    """
    logged = bool((targets >= 0).all())
    codes = catalog.codes[targets] if logged else None
    scores = logged and (score_targets or options.inject_target)
    if scores and options.constrained and options.rollout == "sample" and catalog.trie.holds(targets) < len(targets):
        gone = int(targets[~catalog.listed[targets]][0])
        raise ValueError(f"targets hold item {gone}, which is delisted: no constrained sample is it; leave it out")
    shape = len(targets), options.num_generations, catalog.num_levels
    uniforms = None if options.rollout == "beam" else torch.rand(shape, generator=generator).to(targets.device)

    def compute(rows: Tensor | None) -> list[Tensor]:
        own = histories if rows is None else histories.rows(rows)
        context = policy.encode(own)
        if uniforms is None:
            count = options.num_generations
            drawn = beam_rollouts(policy, context, catalog.trie, count, constrained=options.constrained)
        else:
            drawn = draw_rollouts(
                policy,
                context,
                catalog.trie,
                uniforms if rows is None else uniforms[rows],
                temperature=options.temperature,
                constrained=options.constrained,
            )
        if options.exclude_history:
            excluded = own.holds(drawn.items)
            if options.inject_target:  # the logged item stays, even if it is in the history
                excluded &= drawn.items != (targets if rows is None else targets[rows]).unsqueeze(1)
            drawn = drawn._replace(items=drawn.items.masked_fill(excluded, -1))
        if not scores or codes is None:
            return [*drawn]
        own_codes = (codes if rows is None else codes[rows]).unsqueeze(1)
        return [*drawn, score_codes(policy, context, own_codes, catalog, options).squeeze(1)]

    wholes = [targets.new_zeros(shape), targets.new_zeros(shape[:2])]
    wholes += [torch.zeros(one, device=targets.device) for one in (shape, (shape[0], shape[2]))[: 1 + scores]]
    whole = division(wholes, compute)
    sampled, log_probs = Rollouts(*whole[:3]), whole[3] if scores else None
    rollouts = sampled
    if options.inject_target and codes is not None and log_probs is not None:
        rollouts = inject_target(sampled, targets, codes, log_probs)
    return DrawnGroups(histories, targets, sampled, rollouts, codes, log_probs)


def score_codes(
    policy: Policy[Any, Any],
    context: Context,
    codes: Tensor,  # (B, G, L)
    catalog: Catalog,
    options: ObjectiveConfig,
) -> Tensor:  # (B, G, L)
    """Return log-probabilities of codes under the distribution of the rollouts."""
    if options.rollout == "beam":
        return score_sequences(policy, context, codes)
    trie = catalog.trie if options.constrained else None
    return score_sequences(policy, context, codes, temperature=options.temperature, trie=trie)


def draw_rollouts(
    policy: Policy[ContextT, StateT],
    context: ContextT,
    trie: Trie,
    uniforms: Tensor,  # (B, G, L)
    *,
    temperature: float = 1.0,
    constrained: bool = False,
) -> Rollouts:
    """Draw `G` rollouts per sample; if constrained, of the trie alone, with its probabilities.

    ValueError or DeadEnd: see `adagrpo.decoding.sample`.
    """
    drawn = sample(policy, context, uniforms, temperature=temperature, trie=trie if constrained else None)
    return Rollouts(drawn.codes, trie.lookup(drawn.codes), drawn.log_probs)


@torch.no_grad()
def beam_rollouts(
    policy: Policy[ContextT, StateT], context: ContextT, trie: Trie, group_size: int, *, constrained: bool = False
) -> Rollouts:
    """Return the policy's own `G` most probable Semantic IDs, best first, as the group.

    A mean over them is a **biased** estimate. `log_probs` are unconstrained, at temperature 1. With fewer than `G`
    sequences, the rest have item -1 and codes 0.
    """
    beams = beam_search(policy, context, group_size, trie=trie if constrained else None)
    codes = beams.codes.clamp(min=0)
    left_over = beams.scores == -torch.inf
    items = trie.lookup(codes).masked_fill(left_over, -1)
    log_probs = beams.log_probs
    if bool(left_over.any()):
        log_probs = torch.where(left_over.unsqueeze(-1), policy.score(context, codes), log_probs)
    return Rollouts(codes, items, log_probs)


def inject_target(
    rollouts: Rollouts,
    targets: Tensor,  # (B,)
    target_codes: Tensor,  # (B, L)
    target_log_probs: Tensor,  # (B, L) under the distribution that the rollouts were drawn from
) -> Rollouts:
    """Put the logged item in the last rollout of groups that lack it."""
    group = rollouts.items.shape[1]
    missing = (rollouts.items != targets.unsqueeze(1)).all(1)  # (B,)
    last = torch.arange(group, device=targets.device) == group - 1  # (G,)
    replaced = missing.unsqueeze(1) & last  # (B, G)
    return Rollouts(
        torch.where(replaced.unsqueeze(-1), target_codes.unsqueeze(1), rollouts.codes),
        torch.where(replaced, targets.unsqueeze(1), rollouts.items),
        torch.where(replaced.unsqueeze(-1), target_log_probs.unsqueeze(1), rollouts.log_probs),
    )
