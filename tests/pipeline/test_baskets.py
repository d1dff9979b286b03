"""From order lines to a decided list: the next basket, by time, among what a user had before."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from adagrpo.config.data import SplitConfig
from adagrpo.data.logs.question import ByTime, Question, question_lines
from adagrpo.data.prepared import load_cases, load_item_ids, load_user_ids
from adagrpo.lists.query import Query
from adagrpo.metrics import ndcg, target_rank_in
from adagrpo.pipeline import ListOptions, Run, recommend_users
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.list_parts import LoggedHistories
from adagrpo.pipeline.recommend import recommender

from ..command_line import command

DAY, START = 86_400, 1_600_041_600  # midnight
SMALL = (
    *("sft={epochs: 2, batch_size: 64, learning_rate: 2.0e-3}", "ranker={fit: {epochs: 2}}"),
    *("policy={width: 16, heads: 2, decoder_hidden: 16}", "threads=1"),
)


@pytest.fixture(scope="module")
def decided(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    """A shop of 160 customers who buy two of their own four products again every ten days, and one of anything."""
    folder, draw = tmp_path_factory.mktemp("orders"), np.random.default_rng(0)
    own = [draw.choice(40, 4, replace=False) for _ in range(160)]
    lines = [
        (f"c{user}", f"p{item}", START + (10 * n + user % 10) * DAY, f"o{user}-{n}", 1)
        for user in range(160)
        for n in range(10)
        for item in {*draw.choice(own[user], 2, replace=False).tolist(), int(draw.integers(40))}
    ]
    lines.append(("c5", "p7", START + 35 * DAY, "o5-beside", 1))  # a second order of the same time
    lines += [("", "p1", START, "guest", 1), ("c1", "p1", START, "back", -1), ("c1", "POSTAGE", START, "o1-0", 1)]
    table = pl.DataFrame(lines, schema=["customer_id", "product_id", "time", "order_id", "quantity"], orient="row")
    table.write_csv(folder / "orders.csv")
    sets = [part for setting in SMALL for part in ("--set", setting)]
    done = command("decide", folder / "orders.csv", "--out", folder / "run", *sets)
    assert done.status == 0, done.err
    return Run.open(folder / "run"), done.err


def test_the_question_is_said_and_what_is_no_order_is_left_out(decided: tuple[Run, str]) -> None:
    run, said = decided
    assert (
        "asked: the next basket, by time: validation from 2020-11-25, test from 2020-12-09 (160 and 160 users" in said
    )
    assert "1 rows have no user" in said and "1 rows have a quantity of at most 0" in said and "POSTAGE" in said
    split = run.config.data.split
    assert (split.kind, split.baskets, run.config.evaluation.own_items) == ("temporal", True, True)


def test_metrics_are_over_the_whole_basket_by_hand(decided: tuple[Run, str]) -> None:
    run, _ = decided
    content: dict[str, Any] = run.content("evaluate", "own", "metrics.json")["test"]
    cases = load_cases(run.path("prepare"), "test")
    names, users = load_item_ids(run.path("prepare")).to_list(), load_user_ids(run.path("prepare"))
    lists = dict(
        pl.read_parquet(run.path("evaluate", "own") / "predictions.parquet")
        .sort("rank")
        .group_by("user_id")
        .agg("item_id")
        .iter_rows()
    )
    hits, recalls, gains = [], [], []
    for row, user in enumerate(users.gather(cases.users).to_list()):
        wanted = {names[item] for item in cases.relevant.row(row)}  # type: ignore[union-attr]
        found = [item in wanted for item in lists[user][:10]]
        hits.append(any(found))
        recalls.append(sum(found) / len(wanted))
        gains.append(sum(1 / np.log2(n + 2) for n, hit in enumerate(found) if hit))
        gains[-1] /= sum(1 / np.log2(n + 2) for n in range(len(wanted)))
    for name, values in (("hr@10", hits), ("recall@10", recalls), ("ndcg@10", gains)):
        assert content[name] == pytest.approx(np.mean(values)), name


def test_what_was_measured_is_what_is_served_where_times_are_given(decided: tuple[Run, str]) -> None:
    run, _ = decided
    prepared = run.path("prepare")
    cases, items, users = load_cases(prepared, "test"), load_item_ids(prepared), load_user_ids(prepared)
    histories = [items.gather(cases.histories.row(row)).to_list() for row in range(len(cases))]
    ends, days = cases.histories.offsets, cases.histories.days
    assert days is not None and cases.days is not None
    times = [(days[first:end] * DAY).tolist() for first, end in pairwise(ends)]
    names = users.gather(cases.users).to_list()
    for name in ("own", "item_knn", "fuse", "sft"):
        measured = pl.read_parquet(run.path("evaluate", name) / "predictions.parquet")
        expected = dict(measured.sort("rank").group_by("user_id").agg("item_id").iter_rows())
        for row in range(0, len(names), 20):  # each is asked at the time of its own case
            now = float(cases.days[row]) * DAY
            asked = {"times": [times[row]], "now": now, "users": [names[row]], "as_measured": True}
            (served,) = run.recommend([histories[row]], arm=name, **asked).items
            assert served == expected[names[row]][:10], name
            # whatever the order of the items of a basket
            order = np.lexsort((-np.arange(len(times[row])), times[row]))
            turned = [histories[row][index] for index in order]
            assert turned != histories[row]
            assert run.recommend([turned], arm=name, **asked).items == [served], name


def test_own_items_win_where_nothing_else_is_to_know(decided: tuple[Run, str]) -> None:
    run, _ = decided
    found = {row["list"]: row["test"]["recall@10"] for row in run.content("decision.json")["contenders"]}
    assert found["own"] > max(found["popularity"], found["sft"], found["recent_popularity"])
    ranks = pl.read_parquet(run.path("evaluate", "own") / "validation.parquet")
    assert ranks["own"].dtype == pl.List(pl.Int32)  # one rank for each item of the basket
    cases = load_cases(run.path("prepare"), "validation")
    lengths = ranks["own"].list.len().to_numpy()
    assert lengths.tolist() == cases.relevant.lengths.tolist()  # type: ignore[union-attr]
    assert ndcg(target_rank_in(np.array([[0, 1]]), np.array([[1, 0]])), 2, np.array([2])).tolist() == [1.0]


def test_lists_of_logged_users_know_the_baskets_of_the_log(decided: tuple[Run, str], tmp_path: Path) -> None:
    run, _ = decided
    logged = LoggedHistories(RunData(run))
    history, baskets, days = logged.of("c5"), logged.baskets_of("c5"), logged.days_of("c5")
    assert history is not None and baskets is not None and days is not None
    assert len({*baskets}) == 11 and len({*days}) == 10
    (tmp_path / "users.csv").write_text("user_id\nc5\n", encoding="utf-8")
    asked = ListOptions("item_knn")
    recommend_users(run, tmp_path / "users.csv", tmp_path / "out", asked)
    (found,) = recommender(run, asked)[0].recommend([Query(history, baskets=baskets, days=days, now=logged.now)])
    written = pl.read_parquet(tmp_path / "out/part-00000.parquet").row(0, named=True)
    assert (written["items"], written["scores"]) == (found.items[:10], pytest.approx(found.scores[:10]))


def test_the_line_of_the_question_says_what_is_asked_where_the_user_sets_it() -> None:
    found = ByTime("2020-01-01", "2020-02-01", 14, 160, 160)
    question = Question(True, 1.0, 0.5, 0.0, found)
    own = {"kind": "temporal", "validation_from": "2020-01-01", "test_from": "2020-02-01"}
    assert question_lines(question, SplitConfig(**own, baskets=True)) == question_lines(question)  # type: ignore[arg-type]
    assert len(question_lines(question)) == 2  # and that its cases are few
    each = "asked: the next item, each user's last of the log; data.split is set"
    assert question_lines(question, SplitConfig()) == [each]
    by_time = "asked: the next item, by time: validation from 2020-01-01, test from 2020-02-01; data.split is set"
    assert question_lines(question, SplitConfig(**own)) == [by_time]  # type: ignore[arg-type]
