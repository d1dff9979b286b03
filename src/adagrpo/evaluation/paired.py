"""Compare a run's checkpoints with its starting policy and continued NLL, user by user.

    difference(arm, reference) = (1/N) Σ_u  m(arm, u) - m(reference, u)        over the N test cases

Percentile bootstrap over users (Efron 1979), with shared resamples; other seeds are not covered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from adagrpo.data.columns import USER_ID
from adagrpo.evaluation.statistics import bootstrap_means
from adagrpo.metrics import ReportPart, lookup, metric_names

START, CONTINUED = "sft", "nll"
Point = tuple[str, str]  # arm and checkpoint


def paired_outcomes(users: Mapping[Point, pl.DataFrame], *, resamples: int = 2000) -> dict[str, Any]:
    """Return intervals of each checkpoint's metrics and differences from the references.

    Args:
        users: `per_user` by arm and checkpoint, including (`sft`, `start`).

    Returns:
        JSON-able: `users`, `checkpoints`, `against`; 95 % intervals, rates as fractions.
    """
    start = users[START, "start"]
    for point, table in users.items():
        if not table[USER_ID].equals(start[USER_ID]):
            raise ValueError(f"{point}: measured on other users than the starting policy")
    names = [name for name in metric_names(ReportPart.RESULTS) if name in start.columns and lookup(name).better]
    values = {point: table.select(names).to_numpy().T for point, table in users.items()}  # (metrics, N) each
    pairs = [
        (point, reference)
        for point in users
        for reference in ((START, "start"), (CONTINUED, point[1]))
        if reference in users and point[0] not in (START, reference[0])
    ]
    own = [values[point] for point in users]
    differences = [values[point] - values[reference] for point, reference in pairs]
    intervals = bootstrap_means(np.concatenate([*own, *differences]), resamples=resamples)
    parts = iter([intervals[first : first + len(names)] for first in range(0, len(intervals), len(names))])

    def named(*, tested: bool) -> dict[str, dict[str, float]]:
        kept = ("mean", "low", "high", "p_value") if tested else ("mean", "low", "high")  # rates are not tested
        return {
            name: {field: getattr(interval, field) for field in kept}
            for name, interval in zip(names, next(parts), strict=True)
        }

    checkpoints = [{"arm": arm, "checkpoint": kind, "metrics": named(tested=False)} for arm, kind in users]
    against = [
        {"arm": arm, "checkpoint": kind, "reference": reference, "metrics": named(tested=True)}
        for (arm, kind), (reference, _) in pairs
    ]
    return {"users": len(start), "checkpoints": checkpoints, "against": against}
