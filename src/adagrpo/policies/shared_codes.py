"""A policy of `L` codes in a catalogue where items may share them: one more level, at which they are equal.

    π(n | x, c_1 .. c_L) = 1 / (items of c_1 .. c_L)        for n = 0 .. items - 1, and 0 for any other

A checkpoint of somebody else's cannot tell apart items that were given the same Semantic ID. So each gets its part of
what the policy gives the ID, and a list holds them next to each other in the order of the catalogue. The level is the
one that `resolve_collisions` appends; nothing trains at it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from adagrpo.policies.causal_context import CausalContext, CausalState
from adagrpo.policies.policy import Policy
from adagrpo.semantic_ids.trie import Trie
from adagrpo.types import Histories


@dataclass(frozen=True)
class SharedState:
    """Decoder state: that of the policy, and the node of the catalogue that each hypothesis stands at."""

    causal: CausalState
    nodes: Tensor  # (B, W) int64, -1 where no item begins so

    @property
    def level(self) -> int:
        """Codes written."""
        return self.causal.level


@dataclass(frozen=True)
class NumberedState:
    """Everything is written."""

    level: int


class _WritesCodes(Policy[CausalContext, CausalState], Protocol):
    """A policy that writes the first `L` codes of each item."""

    item_codes: Tensor  # (V, L) int64


class SharedCodesPolicy(nn.Module):
    """See the module's text; implements `adagrpo.policies.policy.Policy`."""

    def __init__(self, causal: _WritesCodes, trie: Trie) -> None:
        """Put one more level behind the `L` codes of a policy; the trie is of the catalogue of `L + 1`."""
        super().__init__()
        levels = len(causal.level_sizes)
        if len(trie.level_sizes) != levels + 1:
            raise ValueError(f"the trie has {len(trie.level_sizes)} levels, expected {levels + 1}")
        self.causal = causal
        self.trie = trie
        self._items = nn.Buffer(torch.diff(trie.first[levels])[: trie.node_counts[levels]], persistent=False)
        _under_names_within(self)

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """`(K_1 .. K_L, K_(L+1))`; the last is the largest number of items that share their codes, and one more."""
        return (*self.causal.level_sizes, self.trie.level_sizes[-1])

    @property
    def small(self) -> bool:
        """False, see `Policy.small`."""
        return False

    @property
    def same_in_training(self) -> bool:
        """See `Policy.same_in_training`."""
        return self.causal.same_in_training

    @property
    def trains_on_nll(self) -> bool:
        """See `Policy.trains_on_nll`."""
        return self.causal.trains_on_nll

    @property
    def checkpoint_files(self) -> Mapping[str, str]:
        """See `Policy.checkpoint_files`."""
        return self.causal.checkpoint_files

    def encode(
        self, histories: Histories, rows: Tensor | None = None, positions: Tensor | None = None
    ) -> CausalContext:
        """See `Policy.encode`."""
        return self.causal.encode(histories, rows, positions)

    def frozen(self) -> SharedCodesPolicy:
        """The policy itself: nothing is worth computing beforehand."""
        return self

    def supervised_loss(self, context: CausalContext, targets: Tensor) -> Tensor:
        """(N,) NLL of the logged items `targets` (N,), nats a code."""
        written = self.causal.supervised_loss(context, targets)
        levels = len(self.causal.level_sizes)
        nodes = self._nodes(self.causal.item_codes[targets])
        items = torch.where(nodes >= 0, self._items[nodes.clamp(min=0)], 1)
        return (levels * written + items.float().log()) / (levels + 1)

    def score(self, context: CausalContext, codes: Tensor, *, temperature: float = 1.0) -> Tensor:
        """(B, G, L + 1) log-probabilities of given codes."""
        written = self.causal.score(context, codes[..., :-1], temperature=temperature)
        numbers = (self._numbers(self._nodes(codes[..., :-1])) / temperature).log_softmax(-1)
        return torch.cat([written, numbers.gather(-1, codes[..., -1:])], dim=-1)

    def start(self, context: CausalContext) -> SharedState:
        """(B, 1) hypotheses."""
        nodes = torch.zeros(len(context), 1, dtype=torch.int64, device=context.prompt_lengths.device)
        return SharedState(self.causal.start(context), nodes)

    def logits(self, state: SharedState) -> Tensor:
        """(B, W, K_l) float32."""
        if state.level == len(self.causal.level_sizes):
            return self._numbers(state.nodes)
        return self.causal.logits(state.causal)

    def advance(self, state: SharedState, parents: Tensor, codes: Tensor) -> SharedState | NumberedState:
        """Append codes (B, W') to hypotheses `parents` (B, W')."""
        if state.level == len(self.causal.level_sizes):  # complete: nothing will be read from these hypotheses
            return NumberedState(state.level + 1)
        nodes = self.trie.child(state.level, state.nodes.gather(1, parents), codes)
        return SharedState(self.causal.advance(state.causal, parents, codes), nodes)

    def _nodes(self, codes: Tensor) -> Tensor:
        """(...) nodes of codes (..., L), -1 where no item has them."""
        nodes = torch.zeros_like(codes[..., 0])
        for level in range(codes.shape[-1]):
            nodes = self.trie.child(level, nodes, codes[..., level])
        return nodes

    def _numbers(self, nodes: Tensor) -> Tensor:
        """(..., K_(L+1)) logits of the number of an item below nodes (...); below -1 there is number 0 alone."""
        # an item keeps its number when another one of the same codes leaves the catalogue, so numbers may have gaps
        listed = self.trie.allowed(len(self.causal.level_sizes), nodes)
        first = torch.arange(self.trie.level_sizes[-1], device=nodes.device) == 0
        written = torch.where((nodes >= 0).unsqueeze(-1), listed, first)
        return torch.zeros((), device=nodes.device).masked_fill(~written, -torch.inf)


def _under_names_within(module: nn.Module) -> None:
    """Save and load weights under the names of `transformers`, as the policy within does."""
    module.register_state_dict_post_hook(_without_prefix)
    module.register_load_state_dict_pre_hook(_with_prefix)


def _without_prefix(module: Any, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    inner = f"{prefix}causal."
    for name in [name for name in state if name.startswith(inner)]:
        state[prefix + name.removeprefix(inner)] = state.pop(name)


def _with_prefix(module: Any, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        state[f"{prefix}causal.{name.removeprefix(prefix)}"] = state.pop(name)
