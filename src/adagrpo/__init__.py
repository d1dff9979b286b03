"""Compare item-kNN, your ranker, a generative policy, re-ranking and fusion on your logs, and serve the best list."""

import importlib
import os
from typing import Any

__all__ = ["Run", "__version__"]
__version__ = "0.1.0"

# A thread that waits at the end of a parallel operation loops for a hundredth of the rounds that GNU OpenMP has by
# itself, and then sleeps. Beside another job on the same cores the loop takes the time that the late thread needs; to
# sleep at once costs a third of the speed where there is none (docs/performance.md). OpenMP reads this once, when torch
# is first imported: that is after this package, unless the caller imported torch before.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "3000"


def __getattr__(name: str) -> Any:
    """`Run` is imported when it is first asked for: it needs torch, and `import adagrpo` alone does not."""
    if name == "Run":
        return importlib.import_module("adagrpo.pipeline").Run
    raise AttributeError(f"module 'adagrpo' has no attribute '{name}'")
