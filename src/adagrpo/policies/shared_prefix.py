"""Attention of many completions to one copy of their prompt, in models of Hugging Face `transformers`.

    mask(q, k) = k in the prompt, or k in the hypothesis of q and not after q

Memory is B · (S + W · L) instead of the B · W · S of a batch of beams.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.cache_utils import DynamicLayer

KeysValues = tuple[tuple[Tensor, Tensor], ...]  # of every layer, (N, heads, tokens, D / heads) each


class PrefixLayer(DynamicLayer):
    """Cached keys and values of one layer, then new ones that are not cached."""

    def __init__(self, parts: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parts = parts
        self.new: tuple[Tensor, Tensor] | None = None
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return the keys and values that attention reads."""
        self.new = (key_states, value_states)
        if not self.parts:
            return self.new
        keys, values = zip(*self.parts, self.new, strict=True)
        return torch.cat(keys, dim=2), torch.cat(values, dim=2)

    def get_seq_length(self) -> int:
        """Return the number of cached tokens."""
        return sum(keys.shape[2] for keys, _ in self.parts)


class Block(NamedTuple):
    """Layout of `P` tokens behind a prompt."""

    steps: Tensor  # (P,) int64, offset of each behind the prompt, from 0
    sees: Tensor  # (P, P) bool, True where a token sees another


class Packed(NamedTuple):
    """Prompts with the blocks behind them: `B` rows of `S + Q` tokens."""

    tokens: Tensor  # (B, S + Q) int64
    positions: Tensor  # (B, S + Q) int64
    mask: Tensor  # (B, 1, S + Q, S + Q) bool, True where attention is paid
    indices: Tensor  # (N, P) int64, where in their rows the tokens of each block are


def block(shared: int, hypotheses: int, length: int, device: torch.device) -> Block:
    """Lay out `shared` tokens, then `hypotheses` runs of `length` tokens that see these and their own."""
    owner = functional.pad(torch.arange(hypotheses, device=device).repeat_interleave(length), (shared, 0), value=-1)
    behind = torch.arange(length, device=device).repeat(hypotheses) + shared
    steps = torch.cat([torch.arange(shared, device=device), behind])
    related = (owner.unsqueeze(1) == owner) | (owner == -1)
    return Block(steps, related & (steps.unsqueeze(1) >= steps))


def block_mask(
    prompt_mask: Tensor,  # (B, S) bool, True at the tokens of a prompt
    own: Tensor,  # (Q, Q') bool, True where a token sees another behind the prompt
) -> Tensor:  # (B, 1, Q, S + Q') bool, True where attention is paid
    """Return the mask of tokens behind a prompt, which see the prompt and each other as in `own`.

    >>> block_mask(torch.tensor([[True, False]]), torch.eye(2, dtype=torch.bool))[0, 0].int().tolist()
    [[1, 0, 1, 0], [1, 0, 0, 1]]
    """
    before = prompt_mask.unsqueeze(1).expand(-1, len(own), -1)
    return torch.cat([before, own.expand(len(prompt_mask), -1, -1)], dim=-1).unsqueeze(1)


def pack(
    prompts: Tensor,  # (B, S) int64 tokens
    tokens: Tensor,  # (N, P) int64
    layout: Block,
    rows: Tensor,  # (N,) int64, the prompt that each block is behind
    prompt_lengths: Tensor,  # (N,) int64, at least 1: how much of it the block sees
) -> Packed:
    """Lay out blocks behind shared prompts; each sees `prompt_lengths` tokens of its prompt, and itself.

    Q is P times the largest number of blocks per prompt; unused slots see one token and themselves.
    """
    (count, length), (blocks, width) = prompts.shape, tokens.shape
    counts = torch.bincount(rows, minlength=count)
    most = int(counts.max())
    order = rows.argsort(stable=True)
    slot = torch.empty_like(rows)
    slot[order] = torch.arange(blocks, device=rows.device) - (counts.cumsum(0) - counts)[rows[order]]
    behind = tokens.new_zeros(count, most, width)
    behind[rows, slot] = tokens
    length_of = prompt_lengths.new_ones(count, most)
    length_of[rows, slot] = prompt_lengths
    prompt_positions = torch.arange(length, device=rows.device)
    upper = functional.pad((prompt_positions.unsqueeze(1) >= prompt_positions).expand(count, -1, -1), (0, most * width))
    prompt_mask = (prompt_positions < length_of.unsqueeze(-1)).repeat_interleave(width, dim=1)  # (B, Q, S)
    apart = torch.eye(most, dtype=torch.bool, device=rows.device)
    own = (apart[:, None, :, None] & layout.sees[None, :, None, :]).view(most * width, most * width)
    lower = torch.cat([prompt_mask, own.expand(count, -1, -1)], dim=2)
    return Packed(
        torch.cat([prompts, behind.flatten(1)], dim=1),
        torch.cat([prompt_positions.expand(count, -1), (length_of.unsqueeze(-1) + layout.steps).flatten(1)], dim=1),
        torch.cat([upper, lower], dim=1).unsqueeze(1),
        length + slot.unsqueeze(1) * width + torch.arange(width, device=rows.device),
    )


# written (B, heads, level * W, d), level by level; parents (B, W') -> (B, heads, level * W', d)
def of_hypotheses(written: Tensor, parents: Tensor, level: int) -> Tensor:
    """Gather the keys or values of the hypotheses `parents`."""
    samples, heads, tokens, width = written.shape
    hypotheses = written.view(samples, heads, level, tokens // level, width)
    index = parents.view(samples, 1, 1, -1, 1).expand(-1, heads, level, -1, width)
    return hypotheses.gather(3, index).flatten(2, 3)


@contextmanager
def checkpointing(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Switch gradient checkpointing on, also in evaluation mode, or off within the context."""
    modules: list[Any] = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
    modes = [module.training for module in modules]
    for module in modules:
        module.gradient_checkpointing, module.training = wanted, wanted or module.training
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


@dataclass(frozen=True)
class Read:
    """Prompts after a pass through the body."""

    hidden: Tensor  # (B, S, D)
    cache: KeysValues  # (B, heads, S, D / heads)


@dataclass(eq=False)
class Prompts:
    """`B` right-padded prompts without the suffix; `read` is set on first use."""

    tokens: Tensor  # (B, S) int64
    lengths: Tensor  # (B,) int64, tokens before the padding
    differentiable: bool  # whether gradients were wanted when the histories were encoded
    read: Read | None = None


@dataclass(frozen=True, eq=False)
class CausalContext:
    """`N` samples: the first `prompt_lengths` tokens of the prompts `rows`."""

    prompts: Prompts
    rows: Tensor  # (N,) int64
    prompt_lengths: Tensor  # (N,) int64
    whole: bool  # the samples are the prompts, in their order

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Tensor | slice) -> CausalContext:
        return CausalContext(self.prompts, self.rows[rows], self.prompt_lengths[rows], False)

    def of_rows(self, values: Tensor) -> Tensor:
        """Expand (B, ...) of prompts to (N, ...) of samples, without a copy if they are the same."""
        return values if self.whole else values[self.rows]

    @property
    def last(self) -> Tensor:
        """(N, 1) position of the last visible token."""
        return (self.prompt_lengths - 1).unsqueeze(1)

    @property
    def prompt_mask(self) -> Tensor:
        """(N, S) bool, True at visible tokens."""
        return torch.arange(
            self.prompts.tokens.shape[1], device=self.prompt_lengths.device
        ) < self.prompt_lengths.unsqueeze(1)


@dataclass(frozen=True)
class CausalState:
    """Decoder state: prompts of samples, codes of hypotheses."""

    hidden: Tensor  # (B, W, D), the state that the next code is read from
    level: int
    prompt: KeysValues  # (B, heads, S, D / heads), the suffix included
    prompt_mask: Tensor  # (B, S) bool, True at the tokens of the prompt
    prompt_lengths: Tensor  # (B,) int64: tokens of the prompt
    written: KeysValues  # (B, heads, level * W, D / heads), level by level; () while there is nothing


# hidden (B, T, D), rows (N,) int64, indices (N, P) int64 -> (N, P, D)
def states_at(hidden: Tensor, rows: Tensor, indices: Tensor) -> Tensor:
    """Gather states at positions of rows.

    >>> hidden = torch.tensor([[[0.0], [1.0]], [[2.0], [3.0]]])
    >>> states_at(hidden, torch.tensor([1, 0]), torch.tensor([[1], [0]])).flatten().tolist()
    [3.0, 0.0]
    """
    flat = (rows.unsqueeze(1) * hidden.shape[1] + indices).flatten()
    return hidden.flatten(0, 1).index_select(0, flat).view(*indices.shape, hidden.shape[-1])
