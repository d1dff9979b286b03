"""Lazy import of the library, which takes seconds; `library.py` lists the modules that commands use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["experiments", "library"]

if TYPE_CHECKING:
    from adagrpo.cli import library
    from adagrpo.pipeline import experiment as experiments
else:

    class _Lazy:
        def __init__(self, module: str) -> None:
            self.module = module

        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module(self.module), name)

    library = _Lazy("adagrpo.cli.library")
    experiments = _Lazy("adagrpo.pipeline.experiment")  # needs the extra `ab`
