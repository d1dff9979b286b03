"""Convert an exposure log to impressions, one row per item of each list.

A click gets the time of its impression, so it is never history of its own list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import polars as pl

from adagrpo.data.columns import CLICKED, CLICKED_AT, ITEM_ID, PROPENSITY, SLOT, TIMESTAMP, USER_ID

REQUEST, ITEM, KIND = "request_id", "item", "kind"
CLOCKS = 5.0  # seconds that the clocks of a service and of who sends feedback may be apart


@dataclass(frozen=True)
class ExposureCounts:
    """Row counts of an exposure log."""

    answers: int  # that were read
    answers_repeated: int  # of a request id that was read before; left out
    answers_without_user: int  # left out: nobody's history
    answers_not_sampled: int  # left out, where only drawn lists are wanted
    impressions: int  # items of the lists that are kept
    clicks: int  # of those
    feedback: int  # that was read
    feedback_repeated: int  # of a request, item and kind that was read before; left out
    feedback_of_unknown_requests: int  # left out: no answer has the id
    feedback_of_items_not_shown: int  # left out: the answer has no such item
    feedback_early: int  # left out: before the answer
    feedback_late: int  # left out: too long after the answer
    feedback_of_other_kinds: int  # left out: counts as no click


class Timely(NamedTuple):
    """Feedback in time, and counts of early and late rows."""

    feedback: pl.DataFrame
    early: int
    late: int


def timely(feedback: pl.DataFrame, within_seconds: float | None) -> Timely:
    """Drop feedback from before its list was `shown`, or too late."""
    after = pl.col("time") - pl.col("shown")
    not_early = feedback.filter(after >= -CLOCKS)
    kept = not_early if within_seconds is None else not_early.filter(after <= within_seconds)
    return Timely(kept, len(feedback) - len(not_early), len(not_early) - len(kept))


def impressions_of(
    exposures: pl.DataFrame,  # one row per answer (`adagrpo.exposures.exposure_store`)
    feedback: pl.DataFrame,  # one row per request, item and kind
    *,
    clicks: Sequence[str],  # kinds of feedback that are clicks
    within_seconds: float | None = None,  # maximum delay of a click; None: no limit
    only_sampled: bool = False,  # keep sampled lists only, which have propensities
) -> tuple[pl.DataFrame, ExposureCounts]:
    """Join the shown lists with their feedback; return impressions in log order, and the counts.

    Columns: user_id, item_id, timestamp, clicked, slot, propensity (null if not sampled), request_id, clicked_at
    (first).
    """
    answers = exposures.unique(REQUEST, keep="first", maintain_order=True)
    distinct = feedback.unique([REQUEST, ITEM, KIND], keep="first", maintain_order=True)
    shown = answers.select(
        REQUEST,
        pl.col("user_hash").alias(USER_ID),
        pl.col("slate").alias(ITEM),
        pl.col("time").alias(TIMESTAMP),
        pl.col("positions").alias(SLOT),
        # lists of one null stand for lists that were not drawn, or `explode` would have no row for their items
        pl.when(pl.col("log_inclusions").is_null())
        .then(pl.lit(None, pl.Float64).repeat_by(pl.col("slate").list.len()))
        .otherwise(pl.col("log_inclusions"))
        .alias(PROPENSITY),
        pl.col("log_inclusions").is_not_null().alias("sampled"),
    ).explode(ITEM, SLOT, PROPENSITY)
    found = distinct.join(answers.select(REQUEST, pl.col("time").alias("shown")), on=REQUEST, how="inner")
    of_items = found.join(shown.select(REQUEST, ITEM).unique(), on=[REQUEST, ITEM], how="inner")
    in_time, early, late = timely(of_items, within_seconds)
    counting = in_time.filter(pl.col(KIND).is_in(list(clicks)))
    clicked = counting.group_by(REQUEST, ITEM).agg(pl.lit(1).alias(CLICKED), pl.col("time").min().alias(CLICKED_AT))
    kept = shown.filter(pl.col(USER_ID).is_not_null() & pl.col(ITEM).is_not_null())
    named = answers.filter(pl.col("user_hash").is_not_null())
    if only_sampled:
        kept = kept.filter("sampled")
    table = kept.join(clicked, on=[REQUEST, ITEM], how="left", maintain_order="left").select(
        USER_ID,
        pl.col(ITEM).alias(ITEM_ID),
        TIMESTAMP,
        pl.col(CLICKED).fill_null(0).cast(pl.Int8),
        SLOT,
        pl.col(PROPENSITY).exp(),
        REQUEST,
        CLICKED_AT,
    )
    counts = ExposureCounts(
        answers=len(exposures),
        answers_repeated=len(exposures) - len(answers),
        answers_without_user=len(answers) - len(named),
        answers_not_sampled=int(named["log_inclusions"].is_null().sum()) if only_sampled else 0,
        impressions=len(table),
        clicks=int(table[CLICKED].sum()),
        feedback=len(feedback),
        feedback_repeated=len(feedback) - len(distinct),
        feedback_of_unknown_requests=len(distinct) - len(found),
        feedback_of_items_not_shown=len(found) - len(of_items),
        feedback_early=early,
        feedback_late=late,
        feedback_of_other_kinds=len(in_time) - len(counting),
    )
    return table, counts
