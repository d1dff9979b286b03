"""Attention of many completions to one copy of the prompt they share, in models of Hugging Face `transformers`.

    keys that attention reads = prompt's (one a sample), then those of what was written (one a lane)
    mask(q, k) = k in the prompt, or k in the lane of q and not after q

Copying the prompt's keys and values for each lane, as a batch of beams does, costs B · W · S of memory and of reading;
this costs B · (S + W · L).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

__all__ = ["KeysValues", "PrefixLayer", "block_mask", "checkpointing", "of_lanes"]

KeysValues = tuple[tuple[Tensor, Tensor], ...]  # of every layer, (N, heads, tokens, D / heads) each


class PrefixLayer(DynamicLayer):
    """One layer's keys and values: those that are there, then those that come, which are not added to the others."""

    def __init__(self, parts: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parts = parts
        self.new: tuple[Tensor, Tensor] | None = None
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """What attention reads."""
        self.new = (key_states, value_states)
        keys, values = zip(*self.parts, self.new, strict=True)
        return torch.cat(keys, dim=2), torch.cat(values, dim=2)

    def get_seq_length(self) -> int:
        """Tokens that are there already."""
        return sum(keys.shape[2] for keys, _ in self.parts)


def block_mask(
    seen: Tensor,  # (B, S) bool, True at the tokens of a prompt
    own: Tensor,  # (Q, Q') bool, True where a token sees what is behind the prompt
) -> Tensor:  # (B, 1, Q, S + Q') bool, True where attention is paid
    """Every token behind a prompt sees the prompt, and what `own` says.

    Example:
        >>> block_mask(torch.tensor([[True, False]]), torch.eye(2, dtype=torch.bool))[0, 0].int().tolist()
        [[1, 0, 1, 0], [1, 0, 0, 1]]
    """
    before = seen.unsqueeze(1).expand(-1, len(own), -1)
    return torch.cat([before, own.expand(len(seen), -1, -1)], dim=-1).unsqueeze(1)


def of_lanes(
    written: Tensor,  # (B, heads, level * W, d), level by level
    parents: Tensor,  # (B, W')
    level: int,
) -> Tensor:  # (B, heads, level * W', d)
    """Keys or values of what the lanes `parents` wrote."""
    samples, heads, tokens, width = written.shape
    lanes = written.view(samples, heads, level, tokens // level, width)
    index = parents.view(samples, 1, 1, -1, 1).expand(-1, heads, level, -1, width)
    return lanes.gather(3, index).flatten(2, 3)


@contextmanager
def checkpointing(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Gradient checkpointing on, in evaluation mode too, or off, for the passes within the block.

    Left to itself a layer of `transformers` checkpoints in training mode only, and drops the cache it was given.
    """
    modules: list[Any] = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
    modes = [module.training for module in modules]
    for module in modules:
        module.gradient_checkpointing, module.training = wanted, wanted or module.training
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
