"""Answers in the window of an experiment that its plan, or one key of users, has not made.

    salt_version    the first digits of the hash of the plan by which the service dealt
    key_version     fingerprint of the key that user ids were hashed with

Under another plan a user may have had another arm, and under another key every user is a new one, in an arm of its own.
Answers of a router name no plan, so the time at which it was frozen has to show that it was there before them.
So where a log has such rows nothing can be said of the experiment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from adagrpo.experiments.plan import Plan, moment_of

PLAN_DIGITS = 12  # of the hash of a plan, as rows have it
NUMBER = "number"


class MismatchedRows(NamedTuple):
    """Answers of another plan, of another key of users, or from before the plan."""

    count_name: str
    answers: int
    first: int  # row of the log, counted from 0
    what: str


def mismatched_rows(plan: Plan, digest: str, frozen: float, exposures: pl.DataFrame) -> list[MismatchedRows]:
    """The answers in the window that the plan has not made; none where all is as it should be.

    Args:
        digest: hash of the plan.
        frozen: seconds since 1970 at which it was.
        exposures: one row an answer, see `adagrpo.exposures.exposure_parts`.
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
