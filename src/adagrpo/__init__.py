"""Compare item-kNN, your ranker, a generative policy, re-ranking and fusion on your logs, and serve the best list."""

import importlib
import os
from typing import Any

__all__ = ["Run", "__version__"]
__version__ = "0.1.0"

# Threads that wait at the end of a parallel operation spin for a hundredth of GNU OpenMP's default rounds, then sleep.
# With another job on the same cores, spinning takes time from the late thread; without one, sleeping at once costs a
# third of the speed (docs/performance.md). OpenMP reads this once, when torch is first imported.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "3000"


def __getattr__(name: str) -> Any:
    """Import `Run` lazily: it needs torch."""
    if name == "Run":
        return importlib.import_module("adagrpo.pipeline").Run
    raise AttributeError(f"module 'adagrpo' has no attribute '{name}'")
