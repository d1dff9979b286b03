"""Drop logged mean rewards that were measured with another reward than the run's current one.

Continued NLL is not retrained when the reward changes. At step 0 all arms are the starting policy, so another mean
reward there means another reward.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from adagrpo.report.figures import Log
from adagrpo.report.tables import START, is_finite

REWARD = "mean_reward@10"
UNTAUGHT = "nll"  # the objective that reads no reward
TOLERANCE = 1e-3  # relative; batches of another size round otherwise


def of_this_reward(logs: Sequence[Log], metrics: Mapping[str, Any]) -> tuple[list[Log], list[str]]:
    """Drop mean rewards of another reward; also return the arms concerned.

    If no arm reads the reward, all are kept.
    """
    known = {log.arm: value for log in logs if log.arm != START and (value := _at_start(log)) is not None}
    untaught = {arm for arm in known if metrics.get("stages", {}).get(arm, {}).get("objective") == UNTAUGHT}
    taught = [value for arm, value in known.items() if arm not in untaught]
    if not taught:
        return list(logs), []
    strangers = [arm for arm in known if arm in untaught and not math.isclose(known[arm], taught[0], rel_tol=TOLERANCE)]
    kept = [replace(log, validation=_without(log)) if log.arm in strangers else log for log in logs]
    return kept, strangers


def _at_start(log: Log) -> float | None:
    value = next((row.get(REWARD) for row in log.validation if row.get("step") == 0), None)
    return value if is_finite(value) else None


def _without(log: Log) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != REWARD} for row in log.validation]
