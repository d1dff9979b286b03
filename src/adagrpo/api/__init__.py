"""The verbs of the command line as methods of a run, for scripts and notebooks.

    from adagrpo import Run

    run = Run.open("runs/mine")
    run.diagnose()
    run.recommend([["item-7", "item-3"]])

A stage's method does what the verb of its name does, in the same folder: either can go on where the other stopped.
Results are typed; tables are polars frames.
"""

from adagrpo.api.results import Chart, Diagnosis, Recommended
from adagrpo.api.run_verbs import Run

__all__ = ["Chart", "Diagnosis", "Recommended", "Run"]
