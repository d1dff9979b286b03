"""vLLM: completions held to the catalogue. Has never been run with an engine.

    POST /v1/completions  {"prompt": [TOKENS], "max_tokens": LEVELS, "vllm_xargs": {"catalog": 1, "exclude": [ITEMS]}}

A request with neither `catalog` nor `exclude` is left alone. The interface is that of the model runner before V2, which
`VLLM_USE_V2_MODEL_RUNNER=0` chooses.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from semantic_ids import SemanticIds  # of the exported folder

__all__ = ["CatalogProcessor", "held"]

try:
    Base: Any = importlib.import_module("vllm.v1.sample.logits_processor").AdapterLogitsProcessor
except ImportError:  # so that the file can be read and tested without the engine
    Base = object


def held(ids: SemanticIds, exclude: list[Any]) -> Callable[[list[int], Tensor], Tensor]:
    """Make the processor of one request, from the tokens written so far and a row of logits to the row held.

    Args:
        ids: of the exported folder.
        exclude: items that are never written.
    """
    allowed = ids.prefix_function(0, [exclude])

    def hold(written: list[int], logits: Tensor) -> Tensor:
        tokens = allowed(0, written) or [ids.end_token]
        result = torch.full_like(logits, -torch.inf)
        result[tokens] = logits[tokens]
        return result

    return hold


class CatalogProcessor(Base):  # type: ignore[misc]
    """Holds the requests that ask for it."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        """Read the catalogue of the model's folder."""
        super().__init__(vllm_config, device, is_pin_memory)
        self.ids = SemanticIds(vllm_config.model_config.model)

    def is_argmax_invariant(self) -> bool:
        """Say that the most probable token may change."""
        return False

    def new_req_logits_processor(self, params: Any) -> Callable[[list[int], Tensor], Tensor] | None:
        """Make the processor of a request; None leaves it alone."""
        asked = params.extra_args or {}
        if not asked.get("catalog") and "exclude" not in asked:
            return None
        return held(self.ids, asked.get("exclude", []))
