"""Answers that invalidate an experiment.

They are of another plan (`salt_version`), of another user key (`key_version`), or of a router, which names no plan,
before the freeze.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from adagrpo.experiments.plan import Plan, moment_of

PLAN_DIGITS = 12  # of a plan's hash, in rows
NUMBER = "number"


class MismatchedRows(NamedTuple):
    """Answers of another plan or user key, or from before the plan."""

    count_name: str
    answers: int
    first: int  # row of the log, counted from 0
    what: str


def mismatched_rows(plan: Plan, digest: str, frozen: float, exposures: pl.DataFrame) -> list[MismatchedRows]:
    """Return the invalidating answers in the window of a plan.

    Args:
        digest: hash of the plan.
        frozen: time of the freeze, seconds since 1970.
    """
    window = exposures.with_row_index(NUMBER).filter(
        (pl.col("time") >= plan.begins) & (pl.col("time") < plan.ends) & pl.col("user_hash").is_not_null()
    )
    named = window.filter(pl.col("experiment") == plan.name)
    own = digest[:PLAN_DIGITS]
    other_plan = named.filter(pl.col("salt_version").ne_missing(own))
    answers = named if len(named) else window.filter(pl.col("experiment").is_null())  # of a router, see `units`
    keys = answers["key_version"].unique(maintain_order=True)
    other_key = answers.filter(pl.col("key_version").ne_missing(keys[0])) if len(keys) > 1 else answers.clear()
    unplanned = answers.filter(pl.col("experiment").is_null() & (pl.col("time") < frozen))
    said = f"of another plan ({_listed(other_plan['salt_version'])}; this one is {own})"
    keyed = f"of users that were hashed with another key than before ({_listed(other_key['key_version'])})"
    late = f"from before {moment_of(frozen)}, when the plan was frozen, and name no plan"
    parts = (
        ("answers_of_other_plan", other_plan, said),
        ("answers_of_other_key", other_key, keyed),
        ("answers_before_the_plan", unplanned, late),
    )
    return [MismatchedRows(name, len(rows), int(rows[NUMBER][0]), what) for name, rows, what in parts if len(rows)]


def _listed(versions: pl.Series) -> str:
    found: Sequence[str | None] = versions.unique(maintain_order=True).to_list()
    return ", ".join(one or "none" for one in found[:3]) + (" and others" if len(found) > 3 else "")
