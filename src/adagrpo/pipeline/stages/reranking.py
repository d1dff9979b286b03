"""Arms of a comparison that train nothing: a policy's beam re-ordered by the reward at serving time.

`rerank` is the starting policy's beam with the weight that the stage `reranking` chose, `<arm>+rerank` that of a
trained arm, with the weight of the highest NDCG@10 on its own validation lists, of the same grid and in the same unit.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from adagrpo.evaluation.predictions import reordered, summarise
from adagrpo.evaluation.reranking import WEIGHTS, edge_warning
from adagrpo.metrics import measured
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.run import Run
from adagrpo.pipeline.stages.choose_weight import choose_reward_weight, read_reward_weights
from adagrpo.pipeline.stages.evaluate import copy_evaluation, write_predictions
from adagrpo.pipeline.stages.fitting import DECODING, progress
from adagrpo.storage.writing import write_file

__all__ = ["RERANK", "SUFFIX", "re_ranked", "re_rankings"]

RERANK = "rerank"
SUFFIX = f"+{RERANK}"


def re_ranked(name: str) -> str | None:
    """The arm whose beam an arm of this kind re-orders; None for any other arm.

    >>> re_ranked("nll+rerank"), re_ranked("rerank"), re_ranked("nll")
    ('nll', 'sft', None)
    """
    return "sft" if name == RERANK else name.removesuffix(SUFFIX) if name.endswith(SUFFIX) else None


def re_rankings(run: Run, name: str) -> dict[str, Callable[[Run], None]]:
    """The stages of an arm of this kind by name, and what makes each: `evaluate/rerank` of the starting policy, and
    `evaluate/<arm>+rerank/best` and `final` of an arm's checkpoints. None of any other arm.
    """
    base = re_ranked(name)
    if base is None:
        return {}
    evaluated: dict[str, Path] = {}
    weights = {f"evaluate/{RERANK}": run.path("sft", "best")}
    if name != RERANK:
        weights = {f"evaluate/{name}/{kind}": run.path("train", base, kind) for kind in ("best", "final")}
    return {stage: partial(_rerank, stage=stage, weights=path, evaluated=evaluated) for stage, path in weights.items()}


def _rerank(run: Run, stage: str, weights: Path, evaluated: dict[str, Path]) -> None:
    """One policy; `evaluated` maps hashes of weights to folders where they have been re-ranked already."""
    data, model = RunData(run), weights / "model.safetensors"
    models, file = Models(data), choose_reward_weight(run)
    inputs = [*data.training_files, data.prepared / "test.parquet", *data.catalog_files]
    inputs += [model, file, *models.reward_files, *data.truth_files]
    identity = run.hash_input(model)

    def build(work: Path) -> None:
        if identity in evaluated:
            copy_evaluation(evaluated[identity], work)
            return
        policy, reward = models.policy(weights), models.reward()
        cases, beams = {}, {}
        for split in ("validation", "test"):
            cases[split], report = data.measured_cases(split), progress(run, f"{stage} {split}")
            beams[split] = models.predict(policy, cases[split], reward, report, eligible=data.eligible)
        known, tried = read_reward_weights(file), {}
        for weight in WEIGHTS:
            lists = reordered(beams["validation"], weight, known.spread)
            tried[weight] = summarise(lists, cases["validation"], tail=data.tail)
        chosen = max(tried, key=lambda weight: tried[weight]["ndcg@10"])
        if stage == f"evaluate/{RERANK}":
            chosen = known.rerank
        warning = edge_warning(chosen)
        if warning is not None:
            run.console.note(f"{stage}: {warning}")
        lists = reordered(beams["test"], chosen, known.spread)
        values: dict[str, Any] = {
            "weight": chosen,
            "spread": known.spread,
            "warning": warning,
            "tried": {str(weight): result["ndcg@10"] for weight, result in tried.items()},
            "validation": tried[chosen],
            "test": summarise(lists, cases["test"], tail=data.tail, utility=data.utility_at(cases["test"])),
        }
        write_predictions(data, cases["test"], lists, work)
        write_file(work / "metrics.json", json.dumps(values, indent=1) + "\n")

    reads = (*DECODING, *models.reward_reads)
    also = {"weights": WEIGHTS, "metrics": measured()} | data.truth_read | data.validation_draw
    evaluated[identity] = run.stage(stage, reads=reads, also=also, schema=3, inputs=inputs, build=build)
