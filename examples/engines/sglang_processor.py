"""SGLang: completions held to the catalogue. Has never been run with an engine.

    POST /generate  {"input_ids": [TOKENS], "custom_logit_processor": PROCESSOR, "sampling_params":
                     {"max_new_tokens": LEVELS, "custom_params": {"exclude": [ITEMS]}}}

SGLang hands a request to the processor only where `custom_params` is an object, so send an empty one at least. A server
with `--enable-custom-logit-processor` runs code of whoever reaches it: keep it behind a service of your own.
"""

from __future__ import annotations

import importlib
import json
from functools import cache
from typing import Any

import torch
from torch import Tensor

import semantic_ids  # of the exported folder

__all__ = ["PROCESSOR", "CatalogLogitProcessor"]

try:
    Base: Any = importlib.import_module("sglang.srt.sampling.custom_logit_processor").CustomLogitProcessor
except ImportError:  # so that the file can be read and tested without the engine
    Base = object

# The serialisation of the class by its name, as the server's `from_str` reads it.
PROCESSOR = json.dumps({"callable": b"csglang_processor\nCatalogLogitProcessor\n.".hex()})


@cache
def _catalogue() -> semantic_ids.SemanticIds:
    assert semantic_ids.__file__ is not None
    return semantic_ids.SemanticIds(semantic_ids.__file__.rpartition("/")[0])


class CatalogLogitProcessor(Base):  # type: ignore[misc]
    """Holds the rows of the requests that name it."""

    def __call__(self, logits: Tensor, custom_param_list: list[dict[str, Any]]) -> Tensor:
        """Hold the rows.

        Args:
            logits: (R, vocabulary).
            custom_param_list: the `custom_params` of each row's request, with the request itself at `__req__`.
        """
        ids = _catalogue()
        result = torch.full_like(logits, -torch.inf)
        for row, params in enumerate(custom_param_list):
            allowed = ids.prefix_function(0, [params.get("exclude", [])])
            tokens = allowed(0, params["__req__"].output_ids) or [ids.end_token]
            result[row, tokens] = logits[row, tokens]
        return result
