"""KuaiRand-Pure (`KuaiRand-Pure.tar.gz`): every impression of the standard policy and every random one, with time.

The ids are the set's own. A row is one video that was shown; there is no slate and no slot. Impressions are in order of
time, and `impression_id` is their number in it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import polars as pl

from adagrpo.data.columns import CLICKED, ITEM_ID, TIMESTAMP, USER_ID
from adagrpo.errors import UserError
from examples.datasets.downloads import Downloads
from examples.datasets.published import Converted, hashes_of_rows

__all__ = ["LATE_PART", "read_kuairand_pure"]

LATE_PART = "impressions of 25 April to 8 May 2022"  # of which the content is known
LATE = 20220425  # as the column `date` says, which is up to an hour off the time
FOLDER = "KuaiRand-Pure/data"
STANDARD = ("log_standard_4_08_to_4_21_pure.csv", "log_standard_4_22_to_5_08_pure.csv")
RANDOM = "log_random_4_22_to_5_08_pure.csv"
SIGNALS = ("long_view", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "is_profile_enter")
COUNTS = (
    "show_cnt",
    "play_cnt",
    "complete_play_cnt",
    "long_time_play_cnt",
    "like_cnt",
    "comment_cnt",
    "follow_cnt",
    "share_cnt",
)
SIZES = ("server_width", "server_height")
TEXTS = (
    "user_active_degree",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
)
SMALL = ("is_lowactive_period", "is_live_streamer", "is_video_author")
LOG: dict[str, type[pl.DataType]] = {
    "user_id": pl.Int32,
    "video_id": pl.Int32,
    "date": pl.Int32,
    "time_ms": pl.Int64,
    "is_click": pl.Int8,
    "play_time_ms": pl.Int32,
    "duration_ms": pl.Int32,
    "tab": pl.Int8,
    **dict.fromkeys(SIGNALS, pl.Int8),
}


def read_kuairand_pure(downloads: Downloads) -> Converted:
    """The set, from the archive or its unpacked folder.

    Raises:
        UserError: a file is missing or is not of its format.
    """
    try:
        return _read(downloads)
    except pl.exceptions.PolarsError as error:
        said = str(error).splitlines()[0]
        raise UserError(f"KuaiRand-Pure: a column is not of its type ({said}); {downloads.expected()}") from error


def _read(downloads: Downloads) -> Converted:
    typed = [pl.col(name).cast(kind) for name, kind in LOG.items()]
    standard = pl.concat([_table(downloads, name, list(LOG)).select(typed) for name in STANDARD])
    standard = standard.sort("time_ms", maintain_order=True).with_row_index("impression_id")
    flags = [pl.col(name).cast(pl.Boolean) for name in SIGNALS]
    impressions = standard.select(
        pl.col("user_id").alias(USER_ID),
        pl.col("impression_id").cast(pl.Int32),
        pl.col("video_id").alias(ITEM_ID),
        pl.col("is_click").cast(pl.Boolean).alias(CLICKED),
        *flags,
        "play_time_ms",
        "duration_ms",
        "tab",
        pl.col("time_ms").alias(TIMESTAMP),
    )
    random = _table(downloads, RANDOM, ["user_id", "video_id", "is_click", "time_ms"]).select(
        pl.col("user_id").cast(pl.Int32).alias(USER_ID),
        pl.col("video_id").cast(pl.Int32).alias(ITEM_ID),
        (pl.col("is_click") > 0).alias(CLICKED),
        pl.col("time_ms").alias(TIMESTAMP),
    )
    tables = {
        "impressions.parquet": impressions,
        "random_exposures.parquet": random.sort(USER_ID, ITEM_ID, maintain_order=True),
        "items.parquet": _videos(downloads),
        "users.parquet": _users(downloads),
    }
    counts = {
        "users": len(tables["users.parquet"]),
        "items": len(tables["items.parquet"]),
        "impressions": len(impressions),
        "random exposures": len(random),
    }
    late = impressions.filter(standard["date"] >= LATE).drop("impression_id")
    return Converted(tables, counts, {LATE_PART: hashes_of_rows(late)})


def _videos(downloads: Downloads) -> pl.DataFrame:
    basic = _table(
        downloads,
        "video_features_basic_pure.csv",
        [
            *["video_id", "author_id", "tag", "video_type", "upload_type", "upload_dt", "video_duration"],
            *SIZES,
            "music_type",
        ],
    )
    monthly = _table(downloads, "video_features_statistic_pure.csv", ["video_id", *COUNTS])
    return (
        basic.join(monthly, on="video_id", how="left", maintain_order="left")
        .sort("video_id")
        .select(
            pl.col("video_id").cast(pl.Int32).alias(ITEM_ID),
            pl.col("author_id").cast(pl.Int32),
            pl.col("tag").cast(pl.String).str.split(",").cast(pl.List(pl.Int16)).alias("tags"),
            "video_type",
            "upload_type",
            pl.col("upload_dt").cast(pl.String).alias("upload_date"),
            pl.col("video_duration").cast(pl.Float64).cast(pl.Int32).alias("duration_ms"),
            *(pl.col(name).cast(pl.Int16).alias(name.removeprefix("server_")) for name in SIZES),
            pl.col("music_type").cast(pl.Float64).cast(pl.Int8),
            *(pl.col(name).cast(pl.Float32) for name in COUNTS),
        )
    )


def _users(downloads: Downloads) -> pl.DataFrame:
    hashed = [f"onehot_feat{number}" for number in range(18)]
    whole = ["follow_user_num", "fans_user_num", "friend_user_num", "register_days"]
    names = ["user_id", TEXTS[0], *SMALL]
    for name, text in zip(whole, TEXTS[1:], strict=True):
        names += [name, text]
    table = _table(downloads, "user_features_pure.csv", [*names, *hashed]).sort("user_id")
    types = dict.fromkeys(TEXTS, pl.String) | dict.fromkeys(SMALL, pl.Int16) | dict.fromkeys(whole, pl.Int32)
    numbers = [pl.col(name).cast(pl.Float64).cast(pl.Int32) for name in hashed]  # 3.0 where some are missing
    return table.select(
        pl.col("user_id").cast(pl.Int32).alias(USER_ID), *(pl.col(n).cast(types[n]) for n in names[1:]), *numbers
    )


def _table(downloads: Downloads, name: str, columns: Sequence[str]) -> pl.DataFrame:
    """Columns of a CSV file of the archive."""
    content = downloads.content(f"{FOLDER}/{name}")
    try:
        return pl.read_csv(io.BytesIO(content), columns=list(columns), infer_schema_length=None).select(columns)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{name}: cannot be read with the columns {', '.join(columns)}; get it anew") from error
