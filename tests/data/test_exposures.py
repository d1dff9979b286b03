"""Impressions without order: nothing about a history says what was clicked, and nothing held out is in training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from adagrpo.data.exposures import load_held_out, write_exposures
from adagrpo.data.logs.interactions import Columns, Logs, read_logs
from adagrpo.data.prepared import load_training
from adagrpo.errors import UserError
from adagrpo.report.run_tables import dataset_table


def logs(folder: Path, rows: Sequence[tuple[str, str, int | None]], name: str) -> Logs:
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows, schema=["user_id", "item_id", "clicked"], orient="row").write_csv(folder / name)
    return read_logs([folder / name], Columns(clicked="clicked"), ordered=False)


@pytest.fixture(scope="module")
def rows() -> list[tuple[str, str, int]]:
    """200 users, 30 items each, a click with probability .4."""
    draw = np.random.default_rng(0)
    return [
        (f"u{user}", f"i{item}", int(draw.random() < 0.4)) for user in range(200) for item in draw.permutation(60)[:30]
    ]


@pytest.fixture(scope="module")
def written(rows: list[tuple[str, str, int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exposures")
    at_random = [(f"u{user}", f"i{item}", 1) for user in range(201) for item in (3, 61)]
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        write_exposures(
            logs(folder, rows, "log.csv"),
            logs(folder, at_random, "r.csv"),
            None,
            folder / name,
            held_out=0.1,
            seed=seed,
        )
    return folder


def test_every_impression_is_in_one_place(written: Path, rows: list[tuple[str, str, int]]) -> None:
    folder = written / "one"
    users, items = (pl.read_parquet(folder / f"{name}.parquet") for name in ("users", "items"))
    shown, held = pl.read_parquet(folder / "impressions.parquet"), load_held_out(folder)
    platform = held.filter(pl.col("exposure") != "random").cast({"clicked": pl.Int8})
    both = pl.concat([table.select("user", "item", "clicked") for table in (shown, platform)])
    named = both.join(users, on="user").join(items.select("item", "item_id"), on="item")
    assert sorted(named.select("user_id", "item_id", "clicked").rows()) == sorted(rows)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["impressions"] == len(shown) and summary["random_impressions"] == len(
        held.filter(pl.col("exposure") == "random")
    )
    for name in ("validation", "biased"):
        assert summary[f"{name}_impressions"] / len(rows) == pytest.approx(0.1, abs=0.015)


def test_items_that_are_described_are_counted(tmp_path: Path, rows: list[tuple[str, str, int]]) -> None:
    items = pl.DataFrame({"item_id": ["i3", "i4", "other"], "text": "", "attributes": [["x"]] * 3})
    write_exposures(logs(tmp_path, rows, "log.csv"), None, items, tmp_path / "out", held_out=0.1, seed=0)
    assert json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["items_described"] == 2
    assert pl.read_parquet(tmp_path / "out" / "items.parquet")["attributes"].list.len().sum() == 2


def test_what_was_shown_at_random_is_no_pair_of_training(written: Path) -> None:
    folder = written / "one"
    pairs = set(pl.read_parquet(folder / "impressions.parquet").select("user", "item").rows())
    at_random = load_held_out(folder).filter(pl.col("exposure") == "random")
    assert not pairs & set(at_random.select("user", "item").rows())
    assert at_random["item"].n_unique() == 2  # an item that the platform never showed is in the catalogue
    # 200 of item 61, those of item 3 that training lacks; the 201st user has no history
    three = sum(1 for user, item in pairs if item == at_random["item"].mode()[0] and user >= 0)
    assert len(at_random) <= 400 - three + 200 and at_random["user"].max() < 200


def test_clicks_are_the_history_and_their_place_is_its_length(written: Path) -> None:
    folder = written / "one"
    training, shown = load_training(folder), pl.read_parquet(folder / "impressions.parquet")
    for user, item, length in shown.filter(pl.col("clicked") == 1).select("user", "item", "history_length").rows():
        assert training.row(user)[length] == item
    assert len(training.values) == int(shown["clicked"].sum())


def test_the_length_of_a_history_does_not_say_what_was_clicked(written: Path) -> None:
    shown = pl.read_parquet(written / "one" / "impressions.parquet")
    most = (pl.col("clicked").sum().over("user") - 1).alias("most")  # users with more clicks have longer histories
    shares = shown.with_columns(most).filter(pl.col("most") > 0).select("clicked", pl.col("history_length") / most)
    means = shares.group_by("clicked").agg(pl.col("history_length").mean()).sort("clicked")["history_length"]
    # uniform over 0, 1 / most .. 1; the standard error of the difference is about .01
    assert means[0] == pytest.approx(0.5, abs=0.03) and means[1] == pytest.approx(0.5, abs=0.03)
    kept = shown.filter(pl.col("history_length") > 0)
    assert kept["clicked"].mean() == pytest.approx(shown["clicked"].mean(), abs=0.01)


def test_equal_seeds_give_equal_bytes(written: Path) -> None:
    for path in sorted((written / "one").iterdir()):
        assert path.read_bytes() == (written / "same" / path.name).read_bytes(), path.name
    assert (written / "one" / "train.parquet").read_bytes() != (written / "other" / "train.parquet").read_bytes()


def test_every_row_is_in_one_count(tmp_path: Path) -> None:
    """Three users click nothing; the log repeats some rows, and the random one has pairs of training."""
    rows = [(f"u{user}", f"i{item}", int(user > 2 and item % 3 == 0)) for user in range(12) for item in range(15)]
    biased, random = logs(tmp_path, [*rows, *rows[:20]], "log.csv"), logs(tmp_path, rows[::7], "r.csv")
    write_exposures(biased, random, None, tmp_path / "out", held_out=0.1, seed=0)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    shown = ("impressions", "validation_impressions", "biased_impressions", "random_impressions")
    dropped = ("repeats_dropped", "pairs_of_training_dropped", "without_history_dropped")
    assert summary["rows_read"] == len(rows) + 20 + len(rows[::7]) == sum(summary[name] for name in (*shown, *dropped))
    assert summary["without_history_dropped"] >= 3 * 15
    printed = [row[0] for row in dataset_table(summary).rows]
    assert "impressions of users without a click in training, dropped" in printed and len(printed) == len(summary) - 1


def test_of_repeats_the_clicked_one_is_kept(tmp_path: Path) -> None:
    rows = [(f"u{u}", f"i{i}", c) for u in range(4) for i in range(20) for c in (0, int(i % 2))]
    write_exposures(logs(tmp_path, rows, "log.csv"), None, None, tmp_path / "out", held_out=0.1, seed=0)
    shown = pl.concat(
        [
            pl.read_parquet(tmp_path / "out" / "impressions.parquet").select("user", "item", "clicked"),
            load_held_out(tmp_path / "out").select("user", "item", pl.col("clicked").cast(pl.Int8)),
        ]
    )
    assert len(shown) == 80 and int(shown["clicked"].sum()) == 40


def test_what_was_chosen_and_not_logged_as_shown_is_counted(tmp_path: Path) -> None:
    rows = [(f"u{user}", f"i{item}", item % 2) for user in range(9) for item in range(9)]
    both = [*rows, ("u0", "i20", None), ("u1", "i21", None)]
    write_exposures(logs(tmp_path, both, "log.csv"), None, None, tmp_path / "p", held_out=0.1, seed=0)
    summary = json.loads((tmp_path / "p" / "summary.json").read_text(encoding="utf-8"))
    assert (summary["rows_read"], summary["without_impression_dropped"]) == (83, 2)
    assert summary["items"] == 9
    write_exposures(logs(tmp_path, rows, "log.csv"), None, None, tmp_path / "q", held_out=0.1, seed=0)
    assert "without_impression_dropped" not in json.loads((tmp_path / "q" / "summary.json").read_text(encoding="utf-8"))


def test_logs_without_impressions_or_clicks_are_refused(tmp_path: Path) -> None:
    plain = read_logs([written_plain(tmp_path)], Columns(), ordered=False)
    with pytest.raises(UserError, match=r"needs data\.columns\.clicked or data\.click_rating"):
        write_exposures(plain, None, None, tmp_path / "out", held_out=0.1, seed=0)
    one = logs(tmp_path, [("a", f"i{i}", 1) for i in range(20)], "log.csv")
    with pytest.raises(UserError, match="1 users have a click to learn from"):
        write_exposures(one, None, None, tmp_path / "out", held_out=0.1, seed=0)


def written_plain(folder: Path) -> Path:
    (folder / "plain.csv").write_text("user_id,item_id\na,1\nb,2\n", encoding="utf-8")
    return folder / "plain.csv"


def test_ratings_are_clicks_from_a_limit_on(tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    path.write_text("user_id,item_id,rating,split\na,1,5,x\na,2,3,x\nb,1,4,y\nb,2,,x\n", encoding="utf-8")
    columns = Columns(rating="rating", event="split")
    read = read_logs([path], columns, keep_events=["x"], click_rating=4, ordered=False)
    shown = [("a", 1, True), ("a", 2, False), ("b", 2, False)]  # what nobody rated is no click
    assert read.impressions is not None and read.impressions.rows() == shown
    for wrong in (Columns(), Columns(rating="rating", clicked="split")):
        with pytest.raises(UserError, match=r"data\.click_rating: needs data\.columns\.rating"):
            read_logs([path], wrong, click_rating=4, ordered=False)
