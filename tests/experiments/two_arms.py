"""A plan of two arms, and the rows of an exposure log under it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl

from adagrpo.experiments.allocation import assign
from adagrpo.experiments.plan import DAY, Plan
from adagrpo.exposures.exposure_log import Exposure, Feedback
from adagrpo.exposures.exposure_store import EXPOSURE_SCHEMA, FEEDBACK_SCHEMA
from adagrpo.storage.hashes import hash_json

CONTENT: dict[str, Any] = {
    "name": "gated",
    "arms": {"now": {"serves": "sft"}, "new": {"serves": "gated"}},
    "control": "now",
    "salt": "2026-11",
    "start": "2026-11-08",
    "days": 7,
    "days_before": 7,
    "metrics": {
        "clicks": {"sum": "click"},
        "ctr": {"sum": "click", "per": "impressions"},
        "dwell": {"sum": "dwell.value", "cuped": True, "expected": 0.02},
    },
    "guardrails": {"latency": {"sum": "latency_ms", "per": "answers", "margin": 0.1}},
}

PLAN = Plan.model_validate(CONTENT)

AFTER = datetime(2026, 12, 1, tzinfo=UTC)


def version(plan: Plan) -> str:
    """Of a plan without a catalogue, as rows of the log have it."""
    return hash_json(plan.model_dump(mode="json"))[:12]


def rows(
    users: int, lift: float = 0.0, slow: float = 1.0, plan: Plan = PLAN, key: str = "k1"
) -> tuple[list[Exposure], list[Feedback]]:
    """Two answers before the start and two in the window, of three items each, a click with 20 seconds of dwell."""
    draw, shown, said = np.random.default_rng(0), [], []
    for user in map(str, range(users)):
        arm = assign(user, salt="2026-11", weights={"now": 1, "new": 1})
        for visit, day in enumerate((-5, -2, 1, 4)):
            treated = arm == "new" and day >= 0
            time = PLAN.begins + day * DAY + 60
            name, ms = f"{user}-{visit}", float(draw.uniform(5, 15)) * (slow if treated else 1)
            kind = "gated" if treated else "sft"
            shown.append(
                Exposure(
                    request_id=name, time=time, slate=(1, 2, 3), arm=kind, model_version=kind, catalog_version="1",
                    user_hash=user, key_version=key, experiment="gated" if day >= 0 else None, latency_ms=ms,
                    salt_version=version(plan) if day >= 0 else None,
                )
            )  # fmt: skip
            for item in (1, 2, 3):
                if draw.random() < 0.3 * (1 + lift * treated):
                    moment = time + 30
                    said.append(Feedback(request_id=name, item=item, kind="click", time=moment))
                    said.append(Feedback(request_id=name, item=item, kind="dwell", time=moment, value=20.0))
    return shown, said


def tables(*given: Any, **options: Any) -> tuple[pl.DataFrame, pl.DataFrame]:
    shown, said = rows(*given, **options)
    exposures = pl.DataFrame(
        [
            {name: getattr(row, name) for name in EXPOSURE_SCHEMA} | {"slate": list(map(str, row.slate))}
            for row in shown
        ],
        schema=EXPOSURE_SCHEMA,
    )
    feedback = pl.DataFrame(
        [{name: getattr(row, name) for name in FEEDBACK_SCHEMA} | {"item": str(row.item)} for row in said],
        schema=FEEDBACK_SCHEMA,
    )
    return exposures, feedback


def changed(**changes: Any) -> Plan:
    return Plan.model_validate(CONTENT | changes)


NEVER = changed(
    metrics={
        "clicks": {"sum": "click"},
        "bought": {"sum": "purchase"},
        "spent": {"sum": "purchase.value", "cuped": True},
        "rate": {"sum": "purchase", "per": "impressions", "better": "down"},
        "clicks a purchase": {"sum": "click", "per": "purchase"},
        "returned": {"sum": "return", "per": "purchase"},
    },
    guardrails={
        "complaints": {"sum": "complaint", "margin": 0.1},
        "kept": {"sum": "purchase", "better": "up", "margin": 0.1},
        "refunds": {"sum": "complaint", "per": "purchase", "margin": 0.1},
        "cost": {"sum": "click", "per": "purchase", "margin": 0.1},
    },
)
