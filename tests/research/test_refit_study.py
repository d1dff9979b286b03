"""The study of the refit: its page is made of its rows, and its cases and intervals are those of the plan, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from adagrpo.report.page import read_rows
from adagrpo.types import Cases, Ragged
from research.refit import __main__ as study


def test_the_page_is_made_of_the_rows() -> None:
    page = (study.HERE / "README.md").read_text(encoding="utf-8")
    assert study.with_rows(page, study.table(list(read_rows(study.ROWS)))) == page


def test_the_readme_says_the_figures_of_the_page() -> None:
    lines = [line.split(" | ") for line in study.table(list(read_rows(study.ROWS))).splitlines()]
    both = {line[0].strip("| "): " to ".join(cell[1:] for cell in line[2:4]) for line in lines[2:]}
    readme = (study.HERE.parents[1] / "README.md").read_text(encoding="utf-8")
    assert f"NDCG@10 {both['online-retail, ndcg@10']} on a retailer's orders" in readme
    assert f"{both['scientific, ndcg@10']} on Scientific" in readme


def test_only_the_last_item_of_each_user_is_left_out_where_there_are_no_times() -> None:
    split = study.until_last(np.array([5, 2, 3]))
    assert split.train_lengths.tolist() == [4, 2, 2]
    assert split.test_positions.tolist() == split.validation_positions.tolist() == [-1, -1, -1]


def test_an_item_that_the_log_before_lacks_is_in_no_list_and_users_are_ours(tmp_path: Any) -> None:
    def run(name: str, ids: list[str], users: list[str]) -> Any:
        (tmp_path / name).mkdir()
        pl.DataFrame({"user_id": users}).write_parquet(tmp_path / name / "users.parquet")
        pl.DataFrame({"item_id": ids}).write_parquet(tmp_path / name / "items.parquet")
        return SimpleNamespace(path=lambda stage: tmp_path / name)

    ours, theirs = run("ours", ["b", "a"], ["v", "u"]), run("theirs", ["a", "new", "b"], ["u", "w"])
    histories = Ragged.of(np.array([0, 2, 2], np.int32), np.array([2, 1]))
    found = study.as_numbered(Cases(np.array([0, 1], np.int32), histories, np.array([1, 0], np.int32)), theirs, ours)
    assert found.users.tolist() == [1, -1]
    assert found.histories.values.tolist() == [1, 0, 0] and found.targets.tolist() == [2, 1]


def test_the_difference_is_over_users_and_seeds() -> None:
    metrics = ("ndcg@10", "recall@10", "hr@10")
    values = {"measured": [0.0, 0.5, 0.25], "refit": [0.5, 0.5, 0.25]}
    rows = [
        {
            "set": "shop",
            "seed": seed,
            "chosen": "fuse",
            "cases": 3,
            "values": {kind: dict.fromkeys(metrics, column) for kind, column in values.items()},
        }
        for seed in (1, 2)
    ]
    line = study.table(rows).splitlines()[2]
    # equal seeds: the interval is over users, whose differences are .5, 0 and 0
    half = 1.959964 * np.std([0.5, 0, 0], ddof=1) / np.sqrt(3)
    assert line.startswith("| shop, ndcg@10 | fuse | 0.2500 | 0.4167 | +0.1667 (")
    low, high = line.split("(")[1].split(")")[0].split(" to ")
    assert float(low) == pytest.approx(1 / 6 - half, abs=1e-4)
    assert float(high) == pytest.approx(1 / 6 + half, abs=1e-4)


def test_the_plan_names_what_is_measured() -> None:
    plan = yaml.safe_load((study.HERE / "plan.yaml").read_text(encoding="utf-8"))
    assert {*plan["sets"]} == {"online-retail", "ml-100k", "kuairand", "shop", "scientific", "beauty"}
    assert plan["seeds"] == [1, 2, 3]
