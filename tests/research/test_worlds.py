"""The study of simulated shops of several kinds: the shops, the plan's draws and the tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from adagrpo.report.page import read_rows
from research.worlds import __main__ as study
from research.worlds.simulators import BEGINNING, DAY, KINDS, Bundles, World, simulate
from research.worlds.tables import CHOICE, HIGHEST, below_table, goals, of_worlds, page, regrets, tables

PLAN = study.read_plan()
COLUMNS = {
    "orders.csv": ["user", "item", "time"],
    "impressions.csv": ["user", "item", "time", "slot", "clicked"],
    "items.csv": ["item", "title", "category", "price"],
}


def small(kind: str, seed: int = 1) -> World:
    knobs = next(planned.knobs for planned in study.tuned(PLAN) if planned.kind == kind)
    return simulate(kind, seed, **{**knobs, "users": 60, "items": 80})


@pytest.mark.parametrize("kind", KINDS)
def test_a_shop_is_a_function_of_its_seed_and_its_truth_is_finite_and_in_no_file(kind: str, tmp_path: Path) -> None:
    world, again, other = small(kind), small(kind), small(kind, seed=2)
    assert all(table.equals(again.files[name]) for name, table in world.files.items())
    truth = world.truth(None)
    np.testing.assert_array_equal(truth, again.truth(None))
    assert not np.array_equal(truth, other.truth(None))
    assert np.isfinite(truth).all() and truth.min() >= 0 and truth.max() <= 1
    paths = world.write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(world.files)
    for path in paths:
        written = pl.read_csv(path)
        assert written.columns == COLUMNS[path.name] and written.equals(world.files[path.name])
    items = world.files["items.csv"]
    of_category = pl.format("article {} of {}", pl.int_range(pl.len()), "category")
    assert items["title"].equals(items.select(of_category).to_series().alias("title"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bundles", "placements", "turnover", "slots"])
def test_where_nothing_is_bought_twice_what_a_user_had_before_is_worth_nothing(kind: str) -> None:
    world = small(kind)
    taken = world.files.get("orders.csv")
    taken = world.files["impressions.csv"].filter(pl.col("clicked") == 1) if taken is None else taken
    assert not taken.select("user", "item").is_duplicated().any()
    before = taken.filter(pl.col("time") < pl.col("time").max().over("user"))
    assert world.utility(world.truth(None), before["user"], before["item"]).max() == 0
    last = taken.filter(pl.col("time") == pl.col("time").max().over("user"))
    assert world.utility(world.truth(None), last["user"], last["item"]).min() > 0


def test_the_truth_of_a_case_is_that_of_the_first_visit_from_a_time_on() -> None:
    rows = [np.full(2, value, np.float32) for value in (0.25, 0.5, 0.75, 1.0)]
    world = World({}, ["a", "b"], ["x", "y"], [(0, 1, rows[0]), (1, 2, rows[1]), (0, 3, rows[2]), (0, 4, rows[3])])
    assert world.truth(3)[:, 0].tolist() == [0.75, 0.5]  # b has no visit from then on: the last one
    assert world.truth(None)[:, 0].tolist() == [1.0, 0.5]


def test_each_kind_is_what_it_is_for() -> None:
    orders = small("seasons").files["orders.csv"]
    assert 0.2 < orders.select(pl.struct("user", "item").is_first_distinct().not_()).to_series().mean() < 0.45
    shop = Bundles(np.random.default_rng(0), 5, 80, share=0.5, fan=3, spread=0.5)
    pairs = {(item, after) for item, row in enumerate(shop.after.tolist()) for after in row}
    assert len(pairs) == 240 and not any((after, item) in pairs for item, after in pairs)
    world = small("placements")
    shown = world.files["impressions.csv"].group_by("item").len().sort("item")
    quality = world.truth(None)[:, [world.items.index(item) for item in shown["item"]]].mean(0)
    assert np.corrcoef(shown["len"], quality)[0, 1] < -0.3
    slots = small("slots").files["impressions.csv"].group_by("slot").agg(pl.col("clicked").mean()).sort("slot")
    assert slots["clicked"][0] > 4 * slots["clicked"][5:].mean()
    baskets = small("staples").files["orders.csv"].group_by("user", "time").len()["len"]
    assert baskets.mean() > 2
    world = small("turnover")
    early = world.files["orders.csv"].group_by("item").agg(pl.col("time").max())
    gone = early.filter(pl.col("time") < BEGINNING + 20 * DAY)["item"]
    truth = world.truth(None)
    assert len(gone) and truth[:, [world.items.index(item) for item in gone]].mean() < truth.mean()


def test_knobs_are_drawn_within_the_ranges_of_the_plan_which_leaves_the_tuned_world_out() -> None:
    drawn = list(study.worlds(PLAN, PLAN["worlds"]))
    assert len(drawn) == 60 and len({(one.kind, one.world) for one in drawn}) == 60
    assert {one.kind for one in drawn} == set(KINDS) and study.TUNED not in {one.world for one in drawn}
    for planned in [*drawn, *study.tuned(PLAN)]:
        ranges = PLAN["sizes"] | PLAN["kinds"][planned.kind]
        assert planned.knobs.keys() == ranges.keys()
        for name, (low, high) in ranges.items():
            assert low <= planned.knobs[name] <= high and isinstance(planned.knobs[name], type(low))
    assert list(study.worlds(PLAN, 2)) == drawn[:12]
    assert len({str(one.knobs) for one in drawn}) == 60


def test_true_utility_is_over_ten_places_of_which_an_empty_one_gives_nothing() -> None:
    world, truth = World({}, ["a", "b"], ["x", "y"], []), np.array([[0.5, 0.1], [0.0, 1.0]])
    lists = pl.DataFrame({"user_id": ["a", "a", "b"], "item_id": ["x", "y", "y"], "rank": [1, 2, 11]})
    assert study.true_utility(world, truth, lists, 3) == pytest.approx(
        (0.5 + 0.1) / 30
    )  # b's item is not among the ten


ROWS = [
    {"kind": "one", "world": 1, "chosen": "fuse", "utility": {"sft": 0.2, "fuse": 0.4}},
    {"kind": "one", "world": 1, "chosen": "sft", "utility": {"sft": 0.2, "fuse": 0.4}},
    {"kind": "two", "world": 1, "chosen": "fuse", "utility": {"sft": 0.3, "fuse": 0.1, "reward": 0.2}},
]
ROWS = [row | {"seed": seed, "best": "fuse"} for seed, row in enumerate(ROWS)]


def test_regret_is_a_share_of_the_best_list_and_means_are_over_worlds() -> None:
    found = regrets(ROWS)
    assert found.keys() == {CHOICE, HIGHEST, "sft", "fuse"}  # reward is not in every run
    np.testing.assert_allclose(found[CHOICE], [0, 0.5, 2 / 3])
    np.testing.assert_allclose(found["sft"], [0.5, 0.5, 0])
    np.testing.assert_allclose(found[HIGHEST], found["fuse"])
    np.testing.assert_allclose(of_worlds(ROWS, found[CHOICE]), [0.25, 2 / 3])
    assert "Regret of the choice 45.83%" in goals(ROWS)  # (1/4 + 2/3) / 2
    assert "always sft, 25.00%; the goal is at most 12.50%" in goals(ROWS)


def test_the_share_of_worlds_below_the_start_has_its_exact_bound() -> None:
    # 1 of 2: P(at most 1) = 1 - p² = .05 at p = √.95
    assert "| all | 1 of 2 | 50.0% | 97.5% | 1 of 3 |" in below_table({"all": ROWS})
    assert "| one | 0 of 1 | 0.0% | 95.0% | 0 of 2 |" in tables(ROWS)[3]


@pytest.mark.slow
def test_a_world_is_measured_once_from_its_files(tmp_path: Path) -> None:
    planned = study.Planned("turnover", 7, {"users": 60, "items": 80, "life": 25.0, "hype": 6.0, "taste": 0.3})
    plan = {"settings": [*PLAN["settings"], "sft.epochs=1", "ranker.fit.epochs=1"]}
    for _ in range(2):
        study.measure(plan, planned, 1, tmp_path, tmp_path / "rows.jsonl")
    (row,) = read_rows(tmp_path / "rows.jsonl")
    assert row["chosen"] in row["utility"] and row["utility"].keys() == row["hits"].keys() >= {"sft", "fuse"}
    assert "click_through" in row["utility"] and row["knobs"] == planned.knobs
    assert not (tmp_path / "turnover-7-1").exists()


def test_the_page_of_tables_is_that_of_the_rows() -> None:
    assert study.PAGE.read_text(encoding="utf-8") == page(list(read_rows(study.RESULTS)))
