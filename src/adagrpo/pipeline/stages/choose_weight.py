"""The reward's weight in the target of `distill`, where `objective.distill.reward_weight` is `validation`.

The target orders a beam as re-ranking does, by log-probability + w · reward, so what a weight is worth can be seen
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
from adagrpo.pipeline.directory import RunDirectory
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.stage import Declaration
from adagrpo.pipeline.stages.evaluate import progress
from adagrpo.pipeline.stages.fitting import DECODING, NOT_FITTED
from adagrpo.pipeline.stages.reranking import WEIGHTS
from adagrpo.storage.writing import write_file

__all__ = ["WEIGHT", "chosen_weight", "least_of_the_best", "teacher"]

WEIGHT = ("teacher", "weight.json")  # the stage, and the file that holds the weight
ERRORS = 1.96  # standard errors within which a weight counts as no worse than the best


def teacher(run: RunDirectory) -> Declaration:
    """The weight of the reward that the starting policy's beam on validation cases is worth re-ordering by."""
    data, weights = RunData(run), run.path("sft", "best")
    models = Models(data)
    inputs = [*data.training_files, *data.catalog_files, weights / "model.safetensors", *models.reward_files]

    def build(work: Path) -> None:
        cases = data.cases("validation")
        beams = models.predict(models.policy(weights), cases, models.reward(), progress(run, WEIGHT[0]))
        targets = cases.targets.astype(np.int64)
        ranks = {weight: metrics.target_rank_in(reordered(beams, weight).items, targets) for weight in WEIGHTS}
        held_out_impressions = {weight: metrics.ndcg(rank, 10) for weight, rank in ranks.items()}
        tried = {str(weight): float(values.mean()) for weight, values in held_out_impressions.items()}
        content = {"weight": least_of_the_best(held_out_impressions), "ndcg@10": tried, "cases": len(cases)}
        write_file(work / WEIGHT[1], json.dumps(content, indent=1) + "\n")

    return Declaration(
        build,
        inputs,
        files=WEIGHT[1:],
        settings=(*DECODING, *models.reward_reads),
        but=NOT_FITTED,
        also={"weights": list(WEIGHTS), "errors": ERRORS},
        schema=2,
    )


def chosen_weight(file: Path) -> float:
    """The weight that a file of the stage `teacher` holds."""
    return float(json.loads(file.read_text(encoding="utf-8"))["weight"])


def least_of_the_best(by_weight: Mapping[float, NDArray[np.floating]]) -> float:
    """The least weight whose values are not shown to be below those of the best one.

    Args:
        by_weight: (N,) a value of each case, by weight; the higher the better.

    Example:
        >>> values = np.array([0.0, 0.4, 0.0, 0.5] * 25)
        >>> least_of_the_best({0.0: values, 0.5: values + 0.1, 1.0: values + np.array([0.0, 0.22] * 50)})
        0.5
    """
    best = max(by_weight, key=lambda weight: (float(by_weight[weight].mean()), -weight))
    less = {weight: np.asarray(values - by_weight[best], dtype=np.float64) for weight, values in by_weight.items()}
    return min(weight for weight, d in less.items() if d.mean() >= -ERRORS * d.std() / np.sqrt(len(d)))
