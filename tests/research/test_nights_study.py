"""The study of refreshed lists: its page is made of its rows, and what its lists are worth is that of its world."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from adagrpo.pipeline.refresh import UNSEEN
from adagrpo.report.page import read_rows
from research.nights import __main__ as study
from research.refit.__main__ import with_rows
from research.worlds.simulators import DAYS, KINDS, World

PLAN = yaml.safe_load((study.HERE / "plan.yaml").read_text(encoding="utf-8"))


def test_the_page_is_made_of_the_rows() -> None:
    page = (study.HERE / "README.md").read_text(encoding="utf-8")
    assert with_rows(page, study.table(list(read_rows(study.ROWS)))) == page


def test_the_page_says_which_loss_its_nights_exclude() -> None:
    nights = [night for row in read_rows(study.ROWS) for night in row["nights"]]
    unseen = max(-night["gain"][1] / max(night["ndcg@10"].values()) for night in nights)
    said = (
        f"all {len(nights)} took over, and would have under the rule that was added later (each night's cases exclude"
    )
    page = (study.HERE / "README.md").read_text(encoding="utf-8")
    assert f"{said} a loss of more than {100 * unseen:.0f} %" in page and unseen < UNSEEN


def test_a_shop_is_watched_on_the_day_after_the_last_night() -> None:
    assert PLAN["days"] + PLAN["nights"] < DAYS and PLAN["shops"].keys() <= KINDS.keys()


def test_utility_is_that_of_the_visits_of_the_day_with_the_history_before_each(monkeypatch: Any) -> None:
    now = study.DAY
    times = {"user": ["a", "b", "a", "a"], "item": ["x", "y", "y", "z"], "time": [5, 6, now + 10, now + 20]}
    truth = np.array([0.5, 0.25, 0.125], np.float32)
    visits = [(0, now - 1, truth), (0, now + 10, truth), (0, now + 20, 2 * truth), (1, now + study.DAY, truth)]
    world = World({}, ["a", "b"], ["x", "y", "z"], visits)
    asked: list[Any] = []

    def of(items: list[list[str]]) -> Any:
        def recommend(histories: Any, k: int, **given: Any) -> Any:
            asked.append((histories, given["times"]))
            return SimpleNamespace(items=items)

        return SimpleNamespace(recommend=recommend)

    monkeypatch.setattr(study, "nearest", lambda made, orders, *given: [["x"], ["x", "z"]])
    found = study.utilities(of([["y"], ["z"]]), of([[], ["x"]]), world, pl.DataFrame(times), now)
    assert asked[0] == ([["x"], ["x", "y"]], [[5], [5, now + 10]])
    assert found["user"].to_list() == ["a", "a"]
    assert found["refreshed"].to_list() == pytest.approx([0.025, 0.025])
    assert found["first"].to_list() == pytest.approx([0.0, 0.1])
    assert found["item_knn"].to_list() == pytest.approx([0.05, 0.125])


@pytest.mark.parametrize("baskets", [False, True])
def test_item_knn_is_counted_on_all_orders(baskets: bool) -> None:
    config = SimpleNamespace(
        data=SimpleNamespace(split=SimpleNamespace(baskets=baskets)),
        evaluation=SimpleNamespace(exclude_history=True),
        max_history=20,
    )
    pairs = [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("c", "z"), ("d", "z"), ("e", "z")]
    orders = pl.DataFrame({"user": [u for u, _ in pairs], "item": [i for _, i in pairs], "time": range(7)})
    lists = study.nearest(SimpleNamespace(config=config), orders, [["x"], [], ["new"]], [[1], [], [8]], [9, 9, 9])
    # y is near x; z is the most popular of three, with three orders, and follows; x is of the history
    assert lists[0] == ["y", "z"] and lists[1][0] == lists[2][0] == "z" and len(lists[1]) == 3
