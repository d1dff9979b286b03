"""How much of the reward goes into the teacher of `distill`, where `objective.distill.reward_weight` is `validation`.

The teacher orders a beam as re-ranking does, by log-probability + w · reward, so what a weight is worth can be seen
before anything is trained: on the validation cases, re-ordering the starting policy's beam. Taken is the least weight
that validation cannot tell from the best one,

    min { w : mean_u(d_u) ≥ -1.96 · s(d) / √N },   d_u = NDCG@10_u(w) - NDCG@10_u(w of the highest mean),

the rule of one standard error (Breiman et al. 1984) with the error of the paired difference, at two. A reward that adds
nothing gets 0, and its arm is continued NLL.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adagrpo import metrics
from adagrpo.evaluation.predictions import reordered
from adagrpo.pipeline.models import Workbench
from adagrpo.pipeline.run import Run
from adagrpo.pipeline.stages.evaluate import decoding_config, progress
from adagrpo.pipeline.stages.reranking import WEIGHTS
from adagrpo.storage.artifacts import write_file

__all__ = ["chosen_weight", "least_of_the_best", "teacher_weight"]

STAGE, FILE = "teacher", "weight.json"
ERRORS = 1.96  # standard errors within which a weight counts as no worse than the best


def teacher_weight(run: Run) -> Path:
    """Choose the weight by the starting policy's beam on validation cases: the stage `teacher`.

    Returns:
        The file that holds it, for `chosen_weight`.
    """
    bench, weights = Workbench(run), run.path("sft", "best")
    inputs = [*bench.training_files, *bench.catalog_files, weights / "model.safetensors", *bench.reward_files]

    def build(work: Path) -> None:
        cases = bench.cases("validation")
        beams = bench.predict(bench.policy(weights), cases, bench.reward(), progress(run, STAGE))
        targets = cases.targets.astype(np.int64)
        ranks = {weight: metrics.target_rank_in(reordered(beams, weight).items, targets) for weight in WEIGHTS}
        found = {weight: metrics.ndcg(rank, 10) for weight, rank in ranks.items()}
        tried = {str(weight): float(values.mean()) for weight, values in found.items()}
        content = {"weight": least_of_the_best(found), "ndcg@10": tried, "cases": len(cases)}
        write_file(work / FILE, json.dumps(content, indent=1) + "\n")

    config = [*decoding_config(run), WEIGHTS, ERRORS, *bench.reward_config]
    return run.stage(STAGE, config=config, inputs=inputs, build=build) / FILE


def chosen_weight(file: Path) -> float:
    """The weight that a file of the stage `teacher` holds."""
    return float(json.loads(file.read_text(encoding="utf-8"))["weight"])


def least_of_the_best(found: Mapping[float, NDArray[np.floating]]) -> float:
    """The least weight whose values are not shown to be below those of the best one.

    Args:
        found: (N,) a value of each case, by weight; the higher the better.

    Example:
        >>> values = np.array([0.0, 0.4, 0.0, 0.5] * 25)
        >>> least_of_the_best({0.0: values, 0.5: values + 0.1, 1.0: values + np.array([0.0, 0.22] * 50)})
        0.5
    """
    best = max(found, key=lambda weight: (float(found[weight].mean()), -weight))
    less = {weight: np.asarray(values - found[best], dtype=np.float64) for weight, values in found.items()}
    return min(weight for weight, d in less.items() if d.mean() >= -ERRORS * d.std() / np.sqrt(len(d)))
