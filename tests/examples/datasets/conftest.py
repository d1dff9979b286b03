"""Stand-ins for official downloads: files of the official format with a given content, at any size."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

DAY = 86_400
LOG_HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)


def days_of(asins: Sequence[str]) -> list[int]:
    """A day for each review, the fewest that keep the order: within a day the order is that of ASINs."""
    days = [0] * len(asins)
    for at in range(1, len(asins)):
        days[at] = days[at - 1] + (asins[at] <= asins[at - 1])
    return days


def write_lines(path: Path, lines: Iterable[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=1) as file:
        file.writelines(f"{line}\n" for line in lines)
    return path


def review(user: str, asin: str, time: int, text: str = "as described") -> str:
    fields = {"reviewerID": user, "asin": asin, "reviewerName": "A.", "helpful": [0, 1], "reviewText": text}
    return json.dumps(fields | {"overall": 4.0, "summary": "ok", "unixReviewTime": time, "reviewTime": "01 30, 2014"})


def amazon_2014(
    folder: Path,
    category: str,
    sequences: Sequence[Sequence[str]],
    records: Iterable[Mapping[str, Any]],
    text: str = "as described",
) -> list[Path]:
    """Reviews in the order of ASINs as the official file has them, and metadata as Python literals."""
    rows = [
        (asin, user, 1_000_000_000 + DAY * day)
        for user, asins in enumerate(sequences)
        for asin, day in zip(asins, days_of(asins), strict=True)
    ]
    reviews = (review(f"A{user:07}", asin, time, text) for asin, user, time in sorted(rows))
    return [
        write_lines(folder / f"reviews_{category}_5.json.gz", reviews),
        write_lines(folder / f"meta_{category}.json.gz", (repr(dict(record)) for record in records)),
    ]


def amazon_2018(
    folder: Path, category: str, reviews: Iterable[tuple[str, str, int]], records: Iterable[Mapping[str, Any]]
) -> list[Path]:
    """Reviews of (user, ASIN, time) in their order, and metadata as JSON."""
    return [
        write_lines(folder / f"{category}_5.json.gz", (review(*row) for row in reviews)),
        write_lines(folder / f"meta_{category}.json.gz", map(json.dumps, records)),
    ]


def ratings_of(sequences: Mapping[int, Sequence[int]], seed: int = 0) -> list[tuple[int, int, int, int]]:
    """(user, film, rating, second) in an order of rows that, sorted by second and stable, gives the sequences back."""
    random = np.random.default_rng(seed)
    rows = []
    for user, films in sequences.items():
        seconds = 956_703_932 + np.cumsum(random.integers(0, 2, len(films)) * random.integers(1, 60, len(films)))
        # blocks of equal seconds in any order, the order within each kept
        place = random.permutation(int(seconds[-1] - seconds[0]) + 1)
        order = sorted(range(len(films)), key=lambda at: (place[seconds[at] - seconds[0]], at))
        rows += [(user, films[at], 1 + films[at] % 5, int(seconds[at])) for at in order]
    return rows


def movielens(
    path: Path, ratings: Iterable[tuple[int, int, int, int]], movies: Iterable[str], users: Iterable[str]
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ml-1m/README", "MovieLens")
        archive.writestr("ml-1m/movies.dat", "\n".join([*movies, ""]).encode("latin-1"))
        archive.writestr("ml-1m/ratings.dat", "\n".join(["::".join(map(str, row)) for row in ratings] + [""]))
        archive.writestr("ml-1m/users.dat", "\n".join([*users, ""]))
    return path


def tar_gz(path: Path, files: Mapping[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            encoded = content.encode()
            entry.size = len(encoded)
            archive.addfile(entry, io.BytesIO(encoded))
    return path


Standins = SimpleNamespace


@pytest.fixture(scope="session")
def standins() -> Standins:
    """The functions above."""
    functions: list[Callable[..., Any]] = [amazon_2014, amazon_2018, movielens, ratings_of, review, tar_gz, write_lines]
    return Standins(LOG_HEADER=LOG_HEADER, **{one.__name__: one for one in functions})
