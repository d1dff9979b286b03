"""Context of a causal language model: prompts, their samples, decoding states."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adagrpo.policies.shared_prefix import KeysValues


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


def states_at(
    hidden: Tensor,  # (B, T, D)
    rows: Tensor,  # (N,) int64
    indices: Tensor,  # (N, P) int64
) -> Tensor:  # (N, P, D)
    """Gather states at positions of rows; its backward pass is faster than indexing on a CPU.

    >>> hidden = torch.tensor([[[0.0], [1.0]], [[2.0], [3.0]]])
    >>> states_at(hidden, torch.tensor([1, 0]), torch.tensor([[1], [0]])).flatten().tolist()
    [3.0, 0.0]
    """
    flat = (rows.unsqueeze(1) * hidden.shape[1] + indices).flatten()
    return hidden.flatten(0, 1).index_select(0, flat).view(*indices.shape, hidden.shape[-1])
