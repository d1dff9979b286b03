"""What inference engines need to write the items of a catalogue: vLLM, SGLang, or a client of either.

`adagrpo export` copies this package into the folder of a model as `catalog_engines`, beside the catalogue. So nothing
here imports anything else of ours: torch, numpy, safetensors and the standard library are what an engine's process has.
"""

import importlib
from typing import Any

__all__ = ["base_class"]


def base_class(module: str, name: str) -> Any:
    """A class of an engine to derive from; `object` where the engine is not installed, as in tests."""
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError:
        return object
