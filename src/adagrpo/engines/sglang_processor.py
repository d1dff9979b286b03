"""SGLang: completions held to the catalogue by a custom logit processor.

    PYTHONPATH=FOLDER python -m sglang.launch_server --model-path FOLDER \\
        --enable-custom-logit-processor --disable-overlap-schedule

    POST /generate  {"input_ids": [TOKENS], "custom_logit_processor": PROCESSOR, "sampling_params":
                     {"max_new_tokens": LEVELS, "custom_params": {"exclude": [ITEMS]}}}

`PROCESSOR` names the class where the server has it; the server makes it from that. SGLang hands the request itself to
the processor only where `custom_params` is an object, so an empty one is sent too. With the overlap schedule the last
token of a request is not in its list yet while the next is chosen, hence the option.

SGLang's own beam search (`beam_width`) takes the logits before any processor sees them; `engine_client` searches
instead.
"""

from __future__ import annotations

import json
from typing import Any

from torch import Tensor

from . import base_class
from .flat_trie import opened

Base: Any = base_class("sglang.srt.sampling.custom_logit_processor", "CustomLogitProcessor")

__all__ = ["PROCESSOR", "CatalogLogitProcessor"]

# What `CatalogLogitProcessor.to_str()` says on a machine that has SGLang: the name of the class, in its serialisation.
PROCESSOR = json.dumps({"callable": b"ccatalog_engines.sglang_processor\nCatalogLogitProcessor\n.".hex()})


class CatalogLogitProcessor(Base):  # type: ignore[misc]
    """Holds each row that comes: SGLang calls it for the requests that name it alone."""

    def __call__(self, logits: Tensor, custom_param_list: list[dict[str, Any]] | None = None) -> Tensor:
        """Hold the rows.

        Args:
            logits: (R, vocabulary).
            custom_param_list: the `custom_params` of each row's request, with the request at `__req__`.

        Raises:
            ValueError: a request sent no `custom_params`, so that what it has written cannot be read.
        """
        params = custom_param_list or []
        if len(params) != len(logits) or any(not one or "__req__" not in one for one in params):
            raise ValueError("send custom_params with the catalogue's processor, {} at least")
        trie = opened(device=str(logits.device))
        nodes = trie.walk_lists([list(one["__req__"].output_ids) for one in params])
        exclusions = {row: trie.excluding(one.get("exclude", ())) for row, one in enumerate(params)}
        owners = nodes.new_tensor(range(len(params)))
        return trie.hold(logits, nodes, owners, trie.closed(exclusions))
