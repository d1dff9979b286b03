"""What a head over prefixes (`policy.item_prefix: 2`) costs in hit rate: starting policies of Amazon Beauty's recipe.

Both policies have the same data, Semantic IDs and seed, and choose their checkpoint by validation. Their lists of the
test cases are held against each other user by user; the interval is a bootstrap over users, so it knows nothing of
other seeds. Takes about half an hour on one core.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adagrpo.config import load_config
from adagrpo.metrics import RankedLists, measure_users, target_rank_in
from adagrpo.pipeline import Run
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.statistics import paired_difference
from benchmarks.compact import RECIPE
from benchmarks.rows import Row

__all__ = ["prefix_quality", "tested"]

PREFIX = 2
METRICS = ("hr@10", "ndcg@10")


def prefix_quality(data: Path, work: Path, *more: str, seed: int = 0) -> list[Row]:
    """Test metrics with prefixes less those without, in points."""
    whole, prefixes = (tested(data, work / f"prefix-{prefix}", prefix, *more, seed=seed) for prefix in (0, PREFIX))
    rows = []
    for name in METRICS:
        found = paired_difference(100 * prefixes[name], 100 * whole[name], seed=0)
        detail = {"items": 100 * float(whole[name].mean()), "prefixes": 100 * float(prefixes[name].mean())}
        detail |= {"users": len(whole[name]), "seed": seed}
        against = "the head over all items, the same users"
        title = f"prefix_{name.replace('@', '')}" + (f"_seed{seed}" if seed else "")
        rows.append(Row(title, found.mean, "points", (found.low, found.high), "", None, against, detail))
    return rows


def tested(data: Path, folder: Path, prefix: int, *more: str, seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """Metrics of each test user under the starting policy, as the recipe evaluates."""
    settings = [f"policy.item_prefix={prefix}", f"seed={seed}", *more]
    run = Run(folder, load_config(RECIPE, settings), data / "amazon-beauty")
    for stage in (Run.prepare, Run.tokenize, Run.sft):
        stage(run)
    models = Models(RunData(run))
    cases = models.data.measured_cases("test")
    found = models.predict(models.policy(run.path("sft", "best")), cases, None)
    ranks = target_rank_in(found.items, cases.targets.astype(np.int64))
    values = measure_users(RankedLists(ranks, found.items.shape[1]))
    return {name: np.asarray(values[name], dtype=np.float64) for name in METRICS}
