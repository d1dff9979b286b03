"""vLLM: completions held to the catalogue by a custom logits processor, for both of its model runners.

    PYTHONPATH=FOLDER vllm serve FOLDER --skip-tokenizer-init
        --logits-processors catalog_engines.vllm_processor:CatalogProcessor

    POST /v1/completions  {"prompt": [TOKENS], "max_tokens": LEVELS, "vllm_xargs": {"catalog": 1, "exclude": [ITEMS]}}

A request without `catalog` or `exclude` is left alone. Newer vLLM runs a "model runner V2", whose interface knows slots
that a request keeps (`vllm.v1.worker.gpu.sample.logits_processor`): take `CatalogProcessor`. The runner before it,
which `VLLM_USE_V2_MODEL_RUNNER=0` chooses, tells of requests that are added, moved and removed within a batch
(`vllm.v1.sample.logits_processor`): take `MovingCatalogProcessor`. Neither can be used for the other.

vLLM's own beam search (`use_beam_search`, `LLM.beam_search`) never reaches a processor: it sends each hypothesis as a
new request of one token, without `vllm_xargs` and with what was written at the end of the prompt. `engine_client`
searches instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import base_class
from .flat_trie import FlatTrie, opened

SlotBase: Any = base_class("vllm.v1.worker.gpu.sample.logits_processor", "LogitsProcessor")
MovingBase: Any = base_class("vllm.v1.sample.logits_processor", "LogitsProcessor")

__all__ = ["CatalogProcessor", "MovingCatalogProcessor"]


def _excluded(sampling_params: Any, trie: FlatTrie) -> list[int] | None:
    """The nodes that a request leaves out; None: it is not held."""
    asked = sampling_params.extra_args or {}
    if not asked.get("catalog") and "exclude" not in asked:
        return None
    return trie.excluding(asked.get("exclude", ()))


def _validate(sampling_params: Any) -> None:
    asked = sampling_params.extra_args or {}
    items = asked.get("exclude", [])
    if not isinstance(items, list | tuple):
        raise ValueError("exclude is a list of item ids")
    for item in items:
        if item not in opened().leaves:
            raise ValueError(f"exclude holds {item!r}, which is no item of the catalogue")


class CatalogProcessor(SlotBase):  # type: ignore[misc]
    """For the model runner V2: state is kept by slot, and the tokens that were written lie on the device."""

    def __init__(self, vllm_config: Any, req_states: Any) -> None:
        """Open the catalogue beside this package.

        Args:
            vllm_config: of the engine.
            req_states: the runner's buffers, read and never written.

        Raises:
            ValueError: the engine drafts tokens, for which rows would not be read rightly.
        """
        if vllm_config.speculative_config is not None:
            raise ValueError("the catalogue's processor does not work with speculative decoding; start without it")
        self.states = req_states
        self.trie = opened(device=str(req_states.device))
        self.held = torch.zeros(req_states.max_num_reqs, dtype=torch.bool)
        self.on_device = self.held.to(req_states.device)
        self.exclusions: dict[int, list[int]] = {}
        self.closed = self.trie.closed({})
        self.changed = False

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse a request whose `exclude` is no list of items.

        Raises:
            ValueError: what is wrong.
        """
        _validate(sampling_params)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """A request takes a slot; whatever had it before is forgotten."""
        nodes = _excluded(sampling_params, self.trie)
        self.held[req_idx] = nodes is not None
        self.exclusions.pop(req_idx, None)
        if nodes:
            self.exclusions[req_idx] = nodes
        self.changed = True
        return nodes is not None

    def apply_staged_writes(self) -> None:
        """Bring what `add_request` noted to the device, once a step."""
        if self.changed:
            self.on_device.copy_(self.held, non_blocking=True)
            self.closed = self.trie.closed(self.exclusions)
            self.changed = False

    def apply(self, logits: Tensor, ctx: Any) -> Tensor:
        """Hold the rows of the requests that asked for it.

        Args:
            logits: (R, vocabulary).
            ctx: says which slot a row is of, and at which position it stands.
        """
        if not bool(self.held[torch.from_numpy(ctx.idx_mapping_np).long()].any()):
            return logits
        slots = ctx.expanded_idx_mapping.long()
        starts = self.states.prompt_len.gpu[slots].long()
        lengths = ctx.pos.long() + 1 - starts
        levels = torch.arange(self.trie.levels, device=logits.device)
        tokens = self.states.all_token_ids.gpu
        places = (starts.unsqueeze(1) + levels).clamp(max=tokens.shape[1] - 1)
        nodes = self.trie.walk(tokens[slots.unsqueeze(1), places].long(), lengths)
        held = self.trie.hold(logits, nodes, slots, self.closed)
        return logits.copy_(torch.where(self.on_device[slots].unsqueeze(1), held, logits))


class MovingCatalogProcessor(MovingBase):  # type: ignore[misc]
    """For the runner before: requests are at an index of the batch, and are told to move."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        """Open the catalogue beside this package."""
        self.trie = opened(device=str(device))
        # index -> the request's list of tokens, which the engine goes on writing, and the nodes it leaves out
        self.requests: dict[int, tuple[list[int], list[int]]] = {}

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """As `CatalogProcessor.validate_params`."""
        _validate(sampling_params)

    def is_argmax_invariant(self) -> bool:
        """No: the most probable token may be none of the catalogue."""
        return False

    def needs_output_token_ids(self) -> bool:
        """Yes: without them, asynchronous scheduling shows -1 for a token that is still on its way."""
        return True

    def update_state(self, batch_update: Any) -> None:
        """Follow the batch: what was removed, then added, then moved; None if nothing was."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self.requests.pop(index, None)
        for index, params, _, written in batch_update.added:
            self.requests.pop(index, None)
            nodes = _excluded(params, self.trie)
            if nodes is not None:
                self.requests[index] = (written, nodes)
        for source, target, direction in batch_update.moved:
            here, there = self.requests.pop(source, None), self.requests.pop(target, None)
            if here is not None:
                self.requests[target] = here
            if there is not None and direction.name == "SWAP":
                self.requests[source] = there

    def apply(self, logits: Tensor) -> Tensor:
        """Hold the rows of the requests that asked for it.

        Raises:
            RuntimeError: a token that was written is not known yet.
        """
        if not self.requests:
            return logits
        rows = torch.tensor(list(self.requests), device=logits.device)
        written = [tokens for tokens, _ in self.requests.values()]
        if any(token < 0 for tokens in written for token in tokens):
            raise RuntimeError("vLLM shows placeholders for tokens: start it with --no-async-scheduling")
        closed = self.trie.closed({index: nodes for index, (_, nodes) in self.requests.items()})
        logits[rows] = self.trie.hold(logits[rows], self.trie.walk_lists(written), rows, closed)
        return logits
