"""AdaGRPO adds GRPO, with your ranker as the reward, to the likelihood loss of a generative recommender, only for
samples that pass a gate: the policy is unsure, and the ranker can tell the logged item from others. `adagrpo` trains it
beside its controls and its rivals, finds the best list that your logs and models can give, and serves that.
"""

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
