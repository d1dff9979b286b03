"""Checks and ordering shared by sampling and the searches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adagrpo.errors import NotFinite
from adagrpo.networks.layers import take
from adagrpo.policies.policy import Policy
from adagrpo.semantic_ids.trie import Trie

PART = 8  # block size of `top_of_many`; N should be a multiple


class DeadEnd(RuntimeError):
    """The trie or the logits exclude every code of a hypothesis, or the given one."""


def top(
    values: Tensor,  # (B, N) float32
    count: int,
) -> Tensor:  # (B, count) int64
    """Return indices of the highest values, best first, ties by index, unlike `torch.topk`."""
    bits = (values + 0.0).view(torch.int32)  # + 0.0 turns -0.0 into 0.0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # as integers in the order of the floats
    index = torch.arange(values.shape[1] - 1, -1, -1, device=values.device)
    return ((ordered.long() << 32) | index).topk(count).indices


def top_of_many(
    values: Tensor,  # (B, N) float32
    count: int,
) -> Tensor:  # (B, count) int64
    """Return `top` for N far above `count`, sorting only the `count` blocks with the highest maxima."""
    if values.shape[1] % PART or values.shape[1] < 4 * PART * count:
        return top(values, count)
    parts = values.view(len(values), -1, PART)
    places = top(parts.amax(-1), count).sort(-1).values  # (B, count), ascending, since ties are broken by index
    best = top(take(parts, places).flatten(1), count)
    return places.gather(1, best // PART) * PART + best % PART


def check(policy: Policy[Any, Any], trie: Trie | None, temperature: float = 1.0) -> int:
    """Check trie and temperature, and return the number of levels."""
    if trie is not None and tuple(trie.level_sizes) != tuple(policy.level_sizes):
        raise ValueError(f"the trie has levels {tuple(trie.level_sizes)}, the policy {tuple(policy.level_sizes)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    return len(policy.level_sizes)


def check_hypotheses(
    logits: Tensor,  # (B, W, K), -inf where a code is not allowed
    level: int,
) -> None:
    """Raise DeadEnd or NotFinite for a hypothesis without a code to draw."""
    highest = logits.amax(-1)
    if bool(highest.isfinite().all()):
        return
    if bool((highest.isnan() | (highest == torch.inf)).any()):
        raise NotFinite("logits", f"the policy's logits hold NaN or +inf at level {level + 1}")
    raise DeadEnd(f"a hypothesis has no code to draw at level {level + 1}: none is allowed")
