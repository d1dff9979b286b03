"""Impressions in no known order: a ranker is fitted and evaluated on them, and a history is a set.

A user's `n` training clicks are shuffled once. The click at position `p` is scored from the `p` before it, an
impression without a click from a uniform number of them, 0 .. n - 1: so histories do not reveal clicks. Held-out
impressions are scored from all.

    train.parquet          the training clicks, in that order; `training_logs.parquet` with original ids
    impressions.parquet    what was shown, clicked or not
    held_out.parquet       user, item, clicked, exposure: `validation` and `biased` (the platform's), or `random`

Random exposures of training pairs, and interactions without an impression, are dropped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.data.columns import (
    ATTRIBUTES,
    CLICKED,
    CLICKED_AT,
    EXPOSURE,
    HISTORY_LENGTH,
    ITEM,
    ITEM_ID,
    POSITION,
    PROPENSITY,
    SLOT,
    TEXT,
    TIMESTAMP,
    USER,
    USER_ID,
)
from adagrpo.data.dataset import in_hash_order, index
from adagrpo.data.logs.interactions import Logs
from adagrpo.data.prepared import TRAINING_LOGS
from adagrpo.errors import UserError

REQUEST, KIND = "request_id", "kind"
CLOCKS = 5.0  # seconds that the clocks of a service and of who sends feedback may be apart


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
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Join an exposure log's shown lists with their feedback, in log order; return also counts of rows.

    A click gets the time of its impression, so it is never history of its own list. Columns: user_id, item_id,
    timestamp, clicked, slot, propensity (null if not sampled), request_id, clicked_at (first).
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
    return table, {
        "answers": len(exposures),
        "answers_repeated": len(exposures) - len(answers),
        "answers_without_user": len(answers) - len(named),  # nobody's history
        "answers_not_sampled": int(named["log_inclusions"].is_null().sum()) if only_sampled else 0,
        "impressions": len(table),
        "clicks": int(table[CLICKED].sum()),
        "feedback": len(feedback),
        "feedback_repeated": len(feedback) - len(distinct),  # of one request, item and kind
        "feedback_of_unknown_requests": len(distinct) - len(found),
        "feedback_of_items_not_shown": len(found) - len(of_items),
        "feedback_early": early,
        "feedback_late": late,
        "feedback_of_other_kinds": len(in_time) - len(counting),
    }


PAIR = [USER_ID, ITEM_ID]
MET = "met"
KINDS = ("biased", "random")  # of held-out impressions that a ranker is examined on


def write_exposures(
    biased: Logs, random: Logs | None, items: pl.DataFrame | None, directory: Path, *, held_out: float, seed: int
) -> None:
    """Write unordered impressions, split at random: a share for validation, and again for the report.

    UserError for no impressions, or fewer than two users with a training click.
    """
    logs = [entry for entry in (biased, random) if entry is not None]
    tables = [entry.impressions for entry in logs if entry.impressions is not None]
    if len(tables) < len(logs):
        raise UserError("data.split.kind: impressions needs data.columns.clicked or data.click_rating")
    keyed = [once(table).with_columns(pl.col(PAIR).cast(pl.String)) for table in tables]
    draw = np.random.default_rng([seed, 2])
    chance = pl.Series(draw.random(len(keyed[0])))
    cut = keyed[0].with_columns(
        pl.when(chance < held_out)
        .then(pl.lit("validation"))
        .when(chance < 2 * held_out)
        .then(pl.lit("biased"))
        .alias(EXPOSURE)
    )
    training = cut.filter(pl.col(EXPOSURE).is_null()).drop(EXPOSURE)
    learners = training.filter(pl.col(CLICKED))[USER_ID].unique().sort()
    if len(learners) < 2:
        raise UserError(f"data: {len(learners)} users have a click to learn from; two are needed")
    users = pl.DataFrame({USER_ID: learners}).select(index(USER, len(learners)), USER_ID)
    catalogue = in_hash_order(pl.concat([table[ITEM_ID] for table in keyed]))
    numbered_items = pl.DataFrame({ITEM_ID: catalogue}).select(index(ITEM, len(catalogue)), ITEM_ID)
    held_out_parts = [cut.filter(pl.col(EXPOSURE).is_not_null()).select(*PAIR, CLICKED, EXPOSURE)]
    dropped = 0
    if random is not None:
        unseen = keyed[1].join(training, on=PAIR, how="anti", maintain_order="left")
        dropped = len(keyed[1]) - len(unseen)
        held_out_parts.append(unseen.select(*PAIR, CLICKED, pl.lit("random").alias(EXPOSURE)))
    examined = _numbered(pl.concat(held_out_parts), users, numbered_items)
    numbered = _numbered(training, users, numbered_items)
    numbered = numbered[draw.permutation(len(numbered))].sort(USER, maintain_order=True)
    user, clicked = numbered[USER].to_numpy(), numbered[CLICKED].to_numpy()
    per_user = np.bincount(user[clicked], minlength=len(users))
    before = np.cumsum(clicked) - clicked - (np.cumsum(per_user) - per_user)[user]
    drawn = (draw.random(len(numbered)) * per_user[user]).astype(np.int64)
    lengths = pl.Series(HISTORY_LENGTH, np.where(clicked, before, drawn), dtype=pl.Int32)
    ordered = numbered.with_columns(lengths).sort(USER, HISTORY_LENGTH, maintain_order=True)
    optional = [name for name in (SLOT, PROPENSITY) if name in ordered.columns]
    clicks = ordered.filter(pl.col(CLICKED)).select(USER, ITEM, pl.col(HISTORY_LENGTH).alias(POSITION))
    shown = ordered.select(USER, ITEM, HISTORY_LENGTH, pl.col(CLICKED).cast(pl.Int8), *optional)

    directory.mkdir(parents=True, exist_ok=True)
    users.write_parquet(directory / "users.parquet")
    table = items
    if table is None:
        table = pl.DataFrame(schema={ITEM_ID: pl.String, TEXT: pl.String, ATTRIBUTES: pl.List(pl.String)})
    table = table.with_columns(pl.col(ITEM_ID).cast(pl.String), pl.lit(True).alias(MET))
    described = numbered_items.join(table, on=ITEM_ID, how="left", maintain_order="left")
    texts = (pl.col(TEXT).fill_null(""), pl.col(ATTRIBUTES).fill_null([]))
    described.select(ITEM, ITEM_ID, *texts).write_parquet(directory / "items.parquet")
    clicks.write_parquet(directory / "train.parquet")
    in_ids = clicks.join(users, on=USER, maintain_order="left").join(numbered_items, on=ITEM, maintain_order="left")
    in_ids.select(USER_ID, ITEM_ID).write_parquet(directory / TRAINING_LOGS)
    nothing = clicks.clear()
    nothing.with_columns(pl.lit(False).alias("target")).write_parquet(directory / "validation.parquet")
    nothing.write_parquet(directory / "test.parquet")
    shown.write_parquet(directory / "impressions.parquet")
    examined.write_parquet(directory / "held_out.parquet")
    rejects = pl.concat([entry.rejects for entry in logs])
    rejects.write_parquet(directory / "rejects.parquet")
    summary: dict[str, Any] = {
        "rows_read": sum(entry.rows_read for entry in logs),
        "rows_rejected": len(rejects),
        "rows_filtered": sum(entry.rows_filtered for entry in logs),
        "repeats_dropped": sum(map(len, tables)) - sum(map(len, keyed)),
        "pairs_of_training_dropped": dropped,
        "users": len(users),
        "items": len(numbered_items),
        "impressions": len(shown),
        "training_interactions": len(clicks),
        "without_history_dropped": sum(map(len, [training, *held_out_parts])) - len(shown) - len(examined),
    }
    for name in ("validation", "biased", "random"):
        summary[f"{name}_impressions"] = int((examined[EXPOSURE] == name).sum())
    clicks_shown = sum(int(table[CLICKED].cast(pl.Boolean).sum()) for table in tables)
    if unshown := sum(len(entry.interactions) for entry in logs) - clicks_shown:
        summary["without_impression_dropped"] = unshown
    if items is not None:
        summary["items_described"] = described[MET].count()
    summary["understood"] = {"files": [file for entry in logs for file in entry.understood.get("files", [])]}
    (directory / "summary.json").write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def load_held_out(directory: Path) -> pl.DataFrame:
    """Load held-out impressions of users with a history."""
    table = pl.read_parquet(directory / "held_out.parquet").cast({CLICKED: pl.Boolean})
    return table.sort(EXPOSURE, USER, maintain_order=True)


def once(table: pl.DataFrame) -> pl.DataFrame:
    """Keep one row per user and item, in log order: a clicked one or else the first."""
    ranked = table.with_row_index("row").with_columns(pl.col(CLICKED).cast(pl.Boolean))
    first = ranked.sort(CLICKED, "row", descending=[True, False]).unique(PAIR, keep="first", maintain_order=True)
    return first.sort("row").drop("row")


def _numbered(table: pl.DataFrame, users: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    numbered = table.join(users, on=USER_ID, how="inner", maintain_order="left")
    return numbered.join(items, on=ITEM_ID, how="inner", maintain_order="left").drop(PAIR)


RANDOM = "random.parquet"
LOGGED = ("train.parquet", "validation.parquet", "test.parquet", "later.parquet", "impressions.parquet")


def random_exposures(shown: Logs, directory: Path) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return items shown at random to a prepared log's users (user, item, clicked), and counts.

    Pairs of the log or its impressions are dropped. UserError for no clicks, or nothing left.
    """
    if shown.impressions is None:
        raise UserError("data.random: no column says what was clicked; name it, data.random.columns.clicked=NAME")
    table = once(shown.impressions).with_columns(pl.col(PAIR).cast(pl.String))
    users = pl.read_parquet(directory / "users.parquet", columns=[USER, USER_ID]).cast({USER_ID: pl.String})
    items = pl.read_parquet(directory / "items.parquet", columns=[ITEM, ITEM_ID]).cast({ITEM_ID: pl.String})
    known = table.join(users, on=USER_ID).join(items, on=ITEM_ID).select(USER, ITEM, CLICKED)
    there = [path for name in LOGGED if (path := directory / name).is_file()]
    logged = pl.concat(pl.scan_parquet(path).select(USER, ITEM) for path in there)
    logged_pairs = logged.join(known.lazy(), on=[USER, ITEM], how="semi").collect()
    kept = known.join(logged_pairs, on=[USER, ITEM], how="anti").sort(USER, ITEM)
    if kept.is_empty():
        raise UserError(
            f"data.random: judges nothing: of {len(table):,} items shown at random {len(table) - len(known):,} are of"
            " unknown users or items, and the others stand in the logs or impressions"
        )
    return kept, {
        "random_exposures": len(kept),
        "random_clicks": int(kept[CLICKED].sum()),
        "random_exposures_unknown": len(table) - len(known),
        "random_exposures_logged": len(known) - len(kept),
        "random_clicks_logged": int(known[CLICKED].sum()) - int(kept[CLICKED].sum()),
    }


def telling(shown: pl.DataFrame, lengths: NDArray[np.int64], most: int, generator: np.random.Generator) -> pl.DataFrame:
    """Return exposures of at most `most` users with a history who clicked some items and skipped some, sorted."""
    of_both = shown.group_by(USER).agg(pl.col(CLICKED).any() & ~pl.col(CLICKED).all()).filter(CLICKED)[USER]
    users = of_both.sort().to_numpy()
    drawn = generator.permutation(users[lengths[users] > 0])[:most]
    return shown.filter(pl.col(USER).is_in(drawn.tolist())).sort(USER, ITEM)
