"""Sets that come in archives or repositories: MovieLens-1M, Coat, slates, SIGformer's KuaiRand, KuaiRand-Pure."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from adagrpo.errors import UserError
from examples.datasets import Downloads
from examples.datasets.kuairand_pure import LATE_PART, read_kuairand_pure
from examples.datasets.movielens import read_movielens
from examples.datasets.ratings_and_slates import read_coat, read_kuairand_exposure, read_slates

MOVIES = [
    "7::Comb, The (1982)::Drama",
    "3::A (L'B)(1990)::Comedy|War",
    "9::Caf\xe9 (2000)::Drama",
    "5::Never (1999)::War",
]
USERS = [f"{user}::F::25::{user}::48067" for user in range(1, 7)]


def test_films_with_few_ratings_go_and_ties_keep_the_order_of_the_file(standins: Any, tmp_path: Path) -> None:
    """Film 9 has four ratings. User 2's films 7 and 3 share a second; user 1 comes first though written last."""
    rows = [
        (2, 9, 5, 1),
        (2, 7, 1, 4),
        (2, 3, 5, 4),
        *((user, film, 3, film) for user in (3, 4, 5, 6) for film in (3, 7)),
    ]
    rows += [(user, 9, 2, 1) for user in (3, 4, 5)] + [(1, 7, 3, 8), (1, 3, 3, 2)]
    path = standins.movielens(tmp_path / "ml-1m.zip", rows, MOVIES, USERS)
    result = read_movielens(Downloads([path], []))
    assert result.counts == {"users": 6, "items": 2, "interactions": 12}
    assert result.tables["interactions.parquet"]["item_id"].to_list()[:4] == [0, 1, 1, 0]  # 3, 7 and 7, 3
    items = result.tables["items.parquet"]
    assert items.rows() == [(0, 3, "A (L'B)", 1990, ["Comedy", "War"]), (1, 7, "Comb, The", 1982, ["Drama"])]
    users = result.tables["users.parquet"]
    assert users.row(1) == (1, 2, "F", 25, 2) and users["original_user"].to_list() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("ratings", "movies", "users", "expected"),
    [
        ([(1, 7, 3, "x")], MOVIES, USERS, "ratings.dat: is not a table of user::movie::rating::timestamp"),
        ([(1, 7, 3)], MOVIES, USERS, "ratings.dat: is not a table"),
        ([(user, 7, 3, 1) for user in range(1, 7)], MOVIES[1:], USERS, "movies.dat: has no film 7"),
        ([(user, 7, 3, 1) for user in range(1, 7)], ["7::Comb::Drama"], USERS, "movies.dat, line 1: is no film"),
        ([(user, 7, 3, 1) for user in range(1, 7)], MOVIES, USERS[1:], "users.dat: lacks users"),
    ],
)
def test_what_is_not_movielens_is_named(
    ratings: Any, movies: Any, users: Any, expected: str, standins: Any, tmp_path: Path
) -> None:
    path = standins.movielens(tmp_path / "ml-1m.zip", ratings, movies, users)
    with pytest.raises(UserError, match=expected):
        read_movielens(Downloads([path], []))


def coat_files(folder: Path) -> dict[str, str]:
    files = {
        "train.ascii": "0 2 0\n5 0 1\n",
        "test.ascii": "4 0 0\n0 3 0\n",
        "propensities.ascii": "1e-01 2e-01 3e-01\n4e-01 5e-01 6e-01\n",
        "user_item_features/user_features.ascii": "1 0 0 1\n0 1 1 0\n",
        "user_item_features/user_features_map.txt": "gender:men\ngender:women\nage:20-30\nage:over 60",
        "user_item_features/item_features.ascii": "1 0\n0 1\n1 0\n",
        "user_item_features/item_features_map.txt": "onfrontpage:yes\nonfrontpage:no",
    }
    for name, content in files.items():
        path = folder / "coat" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return files


def test_coat_from_a_folder_and_from_the_archive(tmp_path: Path) -> None:
    files = coat_files(tmp_path / "repository" / "datasets")
    with zipfile.ZipFile(tmp_path / "coat.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(f"coat/{name}", content)
    one, other = (read_coat(Downloads([tmp_path / name], [])) for name in ("repository", "coat.zip"))
    assert one.hashes == other.hashes
    assert one.counts == {"users": 2, "items": 3, "chosen ratings": 3, "random ratings": 2}
    ratings = [(0, 1, 2, "biased"), (1, 0, 5, "biased"), (1, 2, 1, "biased"), (0, 0, 4, "random"), (1, 1, 3, "random")]
    assert one.tables["ratings.parquet"].rows() == ratings
    assert one.tables["users.parquet"].rows() == [(0, "men", "over 60"), (1, "women", "20-30")]
    assert one.tables["items.parquet"]["onfrontpage"].to_list() == ["yes", "no", "yes"]
    assert one.tables["propensities.parquet"].row(5) == (1, 2, pytest.approx(0.6))


def test_slates(tmp_path: Path) -> None:
    """A rating of 4 and more is a click; random ratings are sorted by user and item."""
    (tmp_path / "user.txt").write_text("0,3,0,5\n0,1,1,0\n1,2,0,4\n", encoding="utf-8")
    (tmp_path / "random.txt").write_text("1,0,3\n0,2,5\n0,0,1\n", encoding="utf-8")
    made = read_slates(Downloads([tmp_path / "user.txt", tmp_path / "random.txt"], []))
    assert made.tables["impressions.parquet"].rows() == [(0, 3, 0, 1), (0, 1, 1, 0), (1, 2, 0, 1)]
    assert made.tables["random_ratings.parquet"].rows() == [(0, 0, 1), (0, 2, 5), (1, 0, 3)]
    assert made.counts == {"users": 2, "items": 4, "impressions": 3, "random ratings": 3}


def test_kuairand_of_sigformer_is_found_beside_another_set(tmp_path: Path) -> None:
    for folder, first in (("KuaiRand", 0), ("KuaiRec", 7)):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for part, row in (("train", "1 2 0.00\n1 1 1.00\n"), ("valid", "0 0 1.00\n"), ("test", f"{first} 5 0.00\n")):
            (tmp_path / "data" / folder / f"{part}.txt").write_text(row, encoding="utf-8")
    table = read_kuairand_exposure(Downloads([tmp_path], [])).tables["impressions.parquet"]
    assert table.rows() == [(0, 5, 0, "test"), (1, 1, 1, "train"), (1, 2, 0, "train"), (0, 0, 1, "valid")]
    assert table.schema["label"] == pl.Int8


def log_row(user: int, video: int, time: int, click: int = 0, random: int = 0, date: int = 20220408) -> str:
    return f"{user},{video},{date},400,{time},{click},0,0,0,0,0,{click},10,20,0,0,0,{random},1"


@pytest.fixture
def pure(standins: Any, tmp_path: Path) -> dict[str, str]:
    """The files of the archive, by path in it."""
    hashed = ",".join(f"onehot_feat{number}" for number in range(18))
    ranges = "follow_user_num,follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num"
    users = f"user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,{ranges},"
    users += f"friend_user_num_range,register_days,register_days_range,{hashed}\n"
    users += "1,full_active,0,-124,1,5,0,3,0,2,0,9,730+," + ",".join(["4.0"] * 18) + "\n"
    users += "0,UNKNOWN,0,0,1,5,0,3,0,2,0,9,730+," + ",".join([""] * 18) + "\n"
    counts = "show_cnt,play_cnt,complete_play_cnt,long_time_play_cnt,like_cnt,comment_cnt,follow_cnt,share_cnt"
    rows = {
        "log_standard_4_08_to_4_21_pure.csv": [log_row(1, 0, 50, click=1), log_row(0, 1, 30)],
        "log_standard_4_22_to_5_08_pure.csv": [log_row(0, 0, 40), log_row(1, 1, 90, date=20220425)],
        "log_random_4_22_to_5_08_pure.csv": [log_row(1, 1, 60, random=1), log_row(0, 1, 70, click=1, random=1)],
    }
    files = {name: "\n".join([standins.LOG_HEADER, *lines, ""]) for name, lines in rows.items()}
    files["user_features_pure.csv"] = users
    files["video_features_basic_pure.csv"] = (
        "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,"
        "music_id,music_type,tag\n1,8,AD,2022-04-10,Web,0.0,,720.0,1280.0,3,,\n0,7,NORMAL,2022-04-09,Web,0.0,87433.0,720.0,"
        '1280.0,3,9.0,"12,65"\n'
    )
    files["video_features_statistic_pure.csv"] = f"video_id,{counts}\n0" + ",1.5" * 8 + "\n1" + ",2.5" * 8 + "\n"
    return {f"KuaiRand-Pure/data/{name}": content for name, content in files.items()}


def test_kuairand_pure(pure: dict[str, str], standins: Any, tmp_path: Path) -> None:
    made = read_kuairand_pure(Downloads([standins.tar_gz(tmp_path / "x.tar.gz", pure)], []))
    assert made.counts == {"users": 2, "items": 2, "impressions": 4, "random exposures": 2}
    impressions = made.tables["impressions.parquet"]
    assert impressions["timestamp"].to_list() == [30, 40, 50, 90]
    assert impressions["impression_id"].to_list() == [0, 1, 2, 3]
    assert impressions["clicked"].to_list() == [False, False, True, False]
    assert impressions["long_view"].to_list() == [False, False, True, False]
    assert made.tables["random_exposures.parquet"].rows() == [(0, 1, True, 70), (1, 1, False, 60)]
    items = made.tables["items.parquet"]
    assert items["tags"].to_list() == [[12, 65], None] and items["duration_ms"].to_list() == [87433, None]
    assert items["share_cnt"].to_list() == [1.5, 2.5] and items.schema["music_type"] == pl.Int8
    users = made.tables["users.parquet"]
    assert users["onehot_feat4"].to_list() == [None, 4] and users["is_live_streamer"].to_list() == [0, -124]
    late = impressions.filter(pl.col("timestamp") == 90).drop("impression_id")
    assert len(made.hashes[LATE_PART]["rows"]) == 64
    assert np.array_equal(late["user_id"].to_numpy(), [1])
