"""A policy of `L` codes over a catalogue with collisions, such as of a published checkpoint.

    π(n | x, c_1 .. c_L) = 1 / (items of c_1 .. c_L)        for n = 0 .. items - 1, and 0 for any other

The last level, that of `resolve_collisions`, is uniform; items of one ID are in catalogue order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from adagrpo.policies.policy import Policy
from adagrpo.policies.shared_prefix import CausalContext, CausalState
from adagrpo.semantic_ids.trie import Trie
from adagrpo.types import Histories


@dataclass(frozen=True)
class SharedState:
    """Decoder state of the inner policy, and nodes of hypotheses."""

    level: int
    causal: CausalState
    nodes: Tensor  # (B, W) int64, -1 where no item begins so


class _WritesCodes(Policy[CausalContext, CausalState], Protocol):
    item_codes: Tensor  # (V, L) int64


class SharedCodesPolicy(nn.Module):
    """Policy with a uniform last level; implements `adagrpo.policies.policy.Policy`."""

    small = False

    def __init__(self, causal: _WritesCodes, trie: Trie) -> None:  # trie of the catalogue of `L + 1` levels
        super().__init__()
        levels = len(causal.level_sizes)
        if len(trie.level_sizes) != levels + 1:
            raise ValueError(f"the trie has {len(trie.level_sizes)} levels, expected {levels + 1}")
        self.causal = causal
        self.same_in_training, self.trains_on_nll = causal.same_in_training, causal.trains_on_nll
        self.trie = trie
        self.level_sizes = (*causal.level_sizes, trie.level_sizes[-1])
        self._items = nn.Buffer(torch.diff(trie.first[levels])[: trie.node_counts[levels]], persistent=False)
        self.register_state_dict_post_hook(_without_prefix)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_with_prefix)  # type: ignore[no-untyped-call]

    @property
    def checkpoint_files(self) -> Mapping[str, str]:
        return self.causal.checkpoint_files

    def encode(
        self, histories: Histories, rows: Tensor | None = None, positions: Tensor | None = None
    ) -> CausalContext:
        return self.causal.encode(histories, rows, positions)

    def frozen(self) -> SharedCodesPolicy:
        return self

    def supervised_loss(self, context: CausalContext, targets: Tensor) -> Tensor:
        written = self.causal.supervised_loss(context, targets)
        levels = len(self.causal.level_sizes)
        nodes = self._nodes(self.causal.item_codes[targets])
        items = torch.where(nodes >= 0, self._items[nodes.clamp(min=0)], 1)
        return (levels * written + items.float().log()) / (levels + 1)

    def score(self, context: CausalContext, codes: Tensor, *, temperature: float = 1.0) -> Tensor:
        written = self.causal.score(context, codes[..., :-1], temperature=temperature)
        numbers = (self._numbers(self._nodes(codes[..., :-1])) / temperature).log_softmax(-1)
        return torch.cat([written, numbers.gather(-1, codes[..., -1:])], dim=-1)

    def start(self, context: CausalContext) -> SharedState:
        nodes = torch.zeros(len(context), 1, dtype=torch.int64, device=context.prompt_lengths.device)
        return SharedState(0, self.causal.start(context), nodes)

    def logits(self, state: SharedState) -> Tensor:
        if state.level == len(self.causal.level_sizes):
            return self._numbers(state.nodes)
        return self.causal.logits(state.causal)

    def advance(self, state: SharedState, parents: Tensor, codes: Tensor) -> SharedState:
        if state.level == len(self.causal.level_sizes):  # complete: nothing will be read from these hypotheses
            return SharedState(state.level + 1, state.causal, state.nodes)
        nodes = self.trie.child(state.level, state.nodes.gather(1, parents), codes)
        return SharedState(state.level + 1, self.causal.advance(state.causal, parents, codes), nodes)

    def _nodes(self, codes: Tensor) -> Tensor:  # (...) of codes (..., L), -1 where no item has them
        nodes = torch.zeros_like(codes[..., 0])
        for level in range(codes.shape[-1]):
            nodes = self.trie.child(level, nodes, codes[..., level])
        return nodes

    def _numbers(self, nodes: Tensor) -> Tensor:
        """Return (..., K_(L+1)) logits of the last code below nodes (...); only 0 is allowed below -1."""
        # an item keeps its number when another one of the same codes leaves the catalogue, so numbers may have gaps
        listed = self.trie.allowed(len(self.causal.level_sizes), nodes)
        first = torch.arange(self.trie.level_sizes[-1], device=nodes.device) == 0
        written = torch.where((nodes >= 0).unsqueeze(-1), listed, first)
        return torch.zeros((), device=nodes.device).masked_fill(~written, -torch.inf)


def _without_prefix(module: Any, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    inner = f"{prefix}causal."
    for name in [name for name in state if name.startswith(inner)]:
        state[prefix + name.removeprefix(inner)] = state.pop(name)


def _with_prefix(module: Any, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        state[f"{prefix}causal.{name.removeprefix(prefix)}"] = state.pop(name)
