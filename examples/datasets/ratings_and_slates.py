"""Small sets of what was shown and what came of it: Coat, the simulated slates of AutoDebias, SIGformer's KuaiRand."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.data.columns import ITEM_ID, POSITION, PROPENSITY, RATING, USER_ID
from adagrpo.errors import UserError
from examples.datasets.downloads import Downloads
from examples.datasets.published import Converted, hashes_of_rows
from examples.datasets.texts import matrix_of, rows_of

__all__ = ["read_coat", "read_kuairand_exposure", "read_slates"]

CLICKED_FROM = 4  # the rating from which on AutoDebias takes a shown item as liked
FEATURES = "user_item_features"


def read_coat(downloads: Downloads) -> Converted:
    """Coat (Schnabel et al. 2016): ratings of coats of the user's own choice, and of coats drawn at random.

    Raises:
        UserError: a file is missing or is not of its format.
    """
    biased = _ratings(matrix_of(downloads.content("coat/train.ascii"), "train.ascii"), "biased")
    random = _ratings(matrix_of(downloads.content("coat/test.ascii"), "test.ascii"), "random")
    ratings = pl.concat([biased, random])
    shown = matrix_of(downloads.content("coat/propensities.ascii"), "propensities.ascii")
    users, items = np.indices(shown.shape).reshape(2, -1)
    propensities = pl.DataFrame(
        {USER_ID: users.astype(np.int32), ITEM_ID: items.astype(np.int32), PROPENSITY: shown.ravel().astype(np.float32)}
    )
    tables = {
        "ratings.parquet": ratings,
        "propensities.parquet": propensities,
        "users.parquet": _features(downloads, "user", USER_ID),
        "items.parquet": _features(downloads, "item", ITEM_ID),
    }
    counts = {
        "users": len(tables["users.parquet"]),
        "items": len(tables["items.parquet"]),
        "chosen ratings": len(biased),
        "random ratings": len(random),
    }
    return Converted(tables, counts, {"ratings": hashes_of_rows(ratings)})


def read_slates(downloads: Downloads) -> Converted:
    """The simulation of AutoDebias: one slate of 25 places a user with clicks, and ratings of items drawn at random.

    Raises:
        UserError: a file is missing or is not of its format.
    """
    slates = rows_of(
        downloads.content("simulation/user.txt"),
        "user.txt",
        {USER_ID: pl.Int32, ITEM_ID: pl.Int32, POSITION: pl.Int8, RATING: pl.Int8},
    )
    random = rows_of(
        downloads.content("simulation/random.txt"),
        "random.txt",
        {USER_ID: pl.Int32, ITEM_ID: pl.Int32, RATING: pl.Int8},
    ).sort(USER_ID, ITEM_ID, maintain_order=True)
    impressions = slates.select(
        USER_ID, ITEM_ID, POSITION, (pl.col(RATING) >= CLICKED_FROM).cast(pl.Int8).alias("click")
    )
    tables = {"impressions.parquet": impressions, "random_ratings.parquet": random}
    counts = {
        "users": impressions[USER_ID].n_unique(),
        "items": pl.concat([impressions[ITEM_ID], random[ITEM_ID]]).n_unique(),
        "impressions": len(impressions),
        "random ratings": len(random),
    }
    hashes = {"impressions": hashes_of_rows(impressions), "random ratings": hashes_of_rows(random)}
    return Converted(tables, counts, hashes)


def read_kuairand_exposure(downloads: Downloads) -> Converted:
    """SIGformer's version of KuaiRand: user, video, label, and the part of its random split that a row is in.

    Raises:
        UserError: a file is missing or is not of its format.
    """
    schema = {USER_ID: pl.Int32, ITEM_ID: pl.Int32, "label": pl.Float64}
    parts = [
        rows_of(downloads.content(f"KuaiRand/{part}.txt"), f"{part}.txt", schema, separator=" ").with_columns(
            pl.col("label").cast(pl.Int8), pl.lit(part).alias("split")
        )
        for part in ("test", "train", "valid")
    ]
    impressions = pl.concat(parts).sort("split", USER_ID, ITEM_ID, maintain_order=True)
    counts = {
        "users": impressions[USER_ID].n_unique(),
        "items": impressions[ITEM_ID].n_unique(),
        "impressions": len(impressions),
    }
    return Converted({"impressions.parquet": impressions}, counts, {"impressions": hashes_of_rows(impressions)})


def _ratings(matrix: NDArray[np.float64], split: str) -> pl.DataFrame:
    """The ratings of a matrix of users x items in which 0 is none."""
    users, items = np.nonzero(matrix)
    return pl.DataFrame(
        {
            USER_ID: users.astype(np.int32),
            ITEM_ID: items.astype(np.int32),
            RATING: matrix[users, items].astype(np.int8),
            "split": [split] * len(users),
        }
    )


def _features(downloads: Downloads, kind: str, number: str) -> pl.DataFrame:
    """One column for each feature, from columns of 0 and 1 that are named `feature:value`."""
    ones = matrix_of(downloads.content(f"{FEATURES}/{kind}_features.ascii"), f"{kind}_features.ascii")
    name = f"{kind}_features_map.txt"
    columns = downloads.content(f"{FEATURES}/{name}").decode("utf-8", errors="replace").split("\n")
    named = [column.strip().partition(":")[::2] for column in columns if column.strip()]
    if len(named) != ones.shape[1]:
        raise UserError(f"{name}: names {len(named)} columns, {kind}_features.ascii has {ones.shape[1]}; get both anew")
    features: dict[str, list[int]] = {}
    for column, (feature, _) in enumerate(named):
        features.setdefault(feature, []).append(column)
    return pl.DataFrame(
        {
            number: np.arange(len(ones), dtype=np.int32),
            **{
                feature: [named[columns[at]][1] for at in ones[:, columns].argmax(1)]
                for feature, columns in features.items()
            },
        }
    )
