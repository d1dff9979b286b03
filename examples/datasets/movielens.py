"""MovieLens-1M (`ml-1m.zip`), in the version of SASRec: films with fewer than 5 ratings go, every rating counts.

A user's films are sorted by second and keep the order of `ratings.dat` within one. SASRec's file has that order for
the users that were compared (docs); its own numbers of users and films follow from no order of the file, so here users
are numbered by their original number, and films as they first occur.
"""

from __future__ import annotations

import re

import polars as pl

from adagrpo.data.columns import ITEM_ID, USER_ID
from adagrpo.errors import UserError
from examples.datasets.downloads import Downloads
from examples.datasets.numbering import counts_of, hashes_of, interaction_table, number_items
from examples.datasets.published import Converted
from examples.datasets.texts import rows_of

__all__ = ["read_movielens"]

LEAST_RATINGS = 5  # of a film
TITLE = re.compile(r"(.*?) ?\((\d{4})\)")


def read_movielens(downloads: Downloads) -> Converted:
    """The set, from `ratings.dat`, `movies.dat` and `users.dat` in the archive or beside it.

    Raises:
        UserError: a file is missing or is not of its format.
    """
    ratings = rows_of(
        downloads.content("ratings.dat"),
        "ratings.dat",
        {"user": pl.Int32, "movie": pl.Int32, "rating": pl.Int8, "timestamp": pl.Int64},
        separator="::",
    ).with_row_index("row")
    often = ratings.filter(pl.len().over("movie") >= LEAST_RATINGS).sort("user", "timestamp", "row")
    by_user = often.group_by("user", maintain_order=True).agg("movie")
    sequences: list[list[int]] = by_user["movie"].to_list()
    numbers = number_items(sequences)
    tables = {
        "interactions.parquet": interaction_table([[numbers[movie] for movie in movies] for movies in sequences]),
        "items.parquet": _movies(downloads, numbers),
        "users.parquet": _users(downloads, by_user["user"]),
    }
    hashes = hashes_of([list(map(str, movies)) for movies in sequences])
    return Converted(tables, counts_of(sequences), {"sequences": hashes})


def _movies(downloads: Downloads, numbers: dict[int, int]) -> pl.DataFrame:
    known = {}
    lines = downloads.content("movies.dat").rstrip().split(b"\n")
    for number, line in enumerate(lines, start=1):
        fields = line.decode("latin-1").rstrip("\r").split("::")
        match = TITLE.fullmatch(fields[1]) if len(fields) == 3 else None
        if match is None or not fields[0].isdecimal():
            raise UserError(f"movies.dat, line {number}: is no film (MovieID::Title (Year)::Genres)")
        known[int(fields[0])] = (match[1], int(match[2]), fields[2].split("|"))
    missing = [movie for movie in numbers if movie not in known]
    if missing:
        raise UserError(f"movies.dat: has no film {missing[0]}, which ratings.dat rates; {downloads.expected()}")
    titles, years, genres = zip(*(known[movie] for movie in numbers), strict=True)
    return pl.DataFrame(
        {
            ITEM_ID: pl.Series(range(len(numbers)), dtype=pl.Int32),
            "movie_id": pl.Series(numbers.keys(), dtype=pl.Int32),
            "title": list(titles),
            "year": pl.Series(years, dtype=pl.Int16),
            "genres": list(genres),
        }
    )


def _users(downloads: Downloads, users: pl.Series) -> pl.DataFrame:
    """user_id, original_user, gender, age (class), occupation (code) of the users that are numbered in this order."""
    schema = {"user": pl.Int32, "gender": pl.String, "age": pl.Int8, "occupation": pl.Int8, "zip": pl.String}
    table = rows_of(downloads.content("users.dat"), "users.dat", schema, separator="::")
    numbered = pl.DataFrame({USER_ID: pl.Series(range(len(users)), dtype=pl.Int32), "original_user": users})
    joined = numbered.join(table, left_on="original_user", right_on="user", how="left", maintain_order="left")
    if joined["gender"].null_count():
        raise UserError(f"users.dat: lacks users that ratings.dat has; {downloads.expected()}")
    return joined.drop("zip")
