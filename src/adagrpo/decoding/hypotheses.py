"""Hypotheses of sampling and the searches, and the order of what they hold."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adagrpo.errors import NotFinite
from adagrpo.networks.layers import take
from adagrpo.policies.policy import Policy
from adagrpo.semantic_ids.trie import Trie

PART = 8  # values that `top_of_many` looks at together; N should be a multiple


class DeadEnd(RuntimeError):
    """A hypothesis cannot go on: the trie or the policy's logits rule out every code, or the one that was given."""


def top(
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


def top_of_many(
    values: Tensor,  # (B, N) float32
    count: int,
) -> Tensor:  # (B, count) int64
    """`top` for N far above `count`: only the parts with the highest maxima, one for each wanted, are sorted."""
    if values.shape[1] % PART or values.shape[1] < 4 * PART * count:
        return top(values, count)
    parts = values.view(len(values), -1, PART)
    places = top(parts.amax(-1), count).sort(-1).values  # (B, count), ascending as equals are
    best = top(take(parts, places).flatten(1), count)
    return places.gather(1, best // PART) * PART + best % PART


def check(policy: Policy[Any, Any], trie: Trie | None, temperature: float = 1.0) -> int:
    """The number of levels, once the trie is known to be made for this policy."""
    if trie is not None and tuple(trie.level_sizes) != tuple(policy.level_sizes):
        raise ValueError(f"the trie has levels {tuple(trie.level_sizes)}, the policy {tuple(policy.level_sizes)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    return len(policy.level_sizes)


def check_hypotheses(
    logits: Tensor,  # (B, W, K), -inf where a code is not allowed
    level: int,
) -> None:
    """Every hypothesis must have a code to draw, and a softmax to draw it from."""
    highest = logits.amax(-1)
    if bool(highest.isfinite().all()):
        return
    if bool((highest.isnan() | (highest == torch.inf)).any()):
        raise NotFinite("logits", f"the policy's logits hold NaN or +inf at level {level + 1}")
    raise DeadEnd(f"a hypothesis has no code to draw at level {level + 1}: none is allowed")
