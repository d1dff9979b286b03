"""Arms of a comparison that train nothing: a policy's beam re-ordered by the reward at serving time.

`rerank` is the starting policy's beam in the order of log-probability + w · reward, `<arm>+rerank` that of a trained
arm, with the w of the highest NDCG@10 on validation. The weight is chosen for each checkpoint by itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adagrpo.evaluation.predictions import reordered, summarise
from adagrpo.metrics import measured
from adagrpo.pipeline.models import Workbench
from adagrpo.pipeline.run import Run
from adagrpo.pipeline.stages.evaluate import copy_evaluation, decoding_config, progress, write_predictions
from adagrpo.storage.artifacts import write_file

__all__ = ["RERANK", "SUFFIX", "re_ranked", "rerank_arm", "rerank_start"]

RERANK = "rerank"
SUFFIX = f"+{RERANK}"
WEIGHTS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


def re_ranked(name: str) -> str | None:
    """The arm whose beam an arm of this kind re-orders; None for any other arm.

    >>> re_ranked("nll+rerank"), re_ranked("rerank"), re_ranked("nll")
    ('nll', 'sft', None)
    """
    return "sft" if name == RERANK else name.removesuffix(SUFFIX) if name.endswith(SUFFIX) else None


def rerank_start(run: Run) -> None:
    """Evaluate the starting policy's beam, re-ordered: the stage `evaluate/rerank`."""
    _rerank(run, f"evaluate/{RERANK}", run.path("sft", "best"), {})


def rerank_arm(run: Run, name: str) -> None:
    """Evaluate the beams of an arm's checkpoints, re-ordered: the stages `evaluate/<arm>+rerank/best` and `final`."""
    known: dict[str, Path] = {}
    for checkpoint in ("best", "final"):
        _rerank(run, f"evaluate/{name}{SUFFIX}/{checkpoint}", run.path("train", name, checkpoint), known)


def _rerank(run: Run, stage: str, weights: Path, known: dict[str, Path]) -> None:
    """One policy; `known` maps hashes of weights to folders where they have been re-ranked already."""
    bench, model = Workbench(run), weights / "model.safetensors"
    inputs = [*bench.training_files, bench.prepared / "test.parquet", *bench.catalog_files]
    inputs += [model, *bench.reward_files, *bench.truth_files]
    identity = run.hash_input(model)

    def build(work: Path) -> None:
        if identity in known:
            copy_evaluation(known[identity], work)
            return
        policy, reward = bench.policy(weights), bench.reward()
        cases, beams = {}, {}
        for split in ("validation", "test"):
            cases[split] = bench.cases(split)
            beams[split] = bench.predict(policy, cases[split], reward, progress(run, f"{stage} {split}"))
        tried = {}
        for weight in WEIGHTS:
            tried[weight] = summarise(reordered(beams["validation"], weight), cases["validation"], tail=bench.tail)
        chosen = max(tried, key=lambda weight: tried[weight]["ndcg@10"])
        lists = reordered(beams["test"], chosen)
        utility = bench.truth().utility if bench.truth_files else None
        values: dict[str, Any] = {
            "weight": chosen,
            "tried": {str(weight): found["ndcg@10"] for weight, found in tried.items()},
            "validation": tried[chosen],
            "test": summarise(lists, cases["test"], tail=bench.tail, utility=utility),
        }
        write_predictions(bench, cases["test"], lists, work)
        write_file(work / "metrics.json", json.dumps(values, indent=1) + "\n")

    config = [*decoding_config(run), WEIGHTS, *bench.reward_config, measured()]
    known[identity] = run.stage(stage, config=config, inputs=inputs, build=build)
