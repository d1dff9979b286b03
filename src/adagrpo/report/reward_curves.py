"""Which arms measured their mean reward with the reward that the run has now.

An arm of continued NLL reads no reward, so another reward does not make it again. What it logged at its validations is
the mean of the reward that the run had then. At step 0 every arm is the starting policy on the same users: where such
an arm differs there from the arms that read the reward, it measured another one.
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
    """The logs without mean rewards of another reward, and the arms of which they were left out.

    Where no arm reads the reward there is nothing to compare with, and all are kept.
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
