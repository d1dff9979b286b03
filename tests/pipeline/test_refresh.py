"""A refresh: newer rows are taken into the served list, which stays where the other is worse or is not finished."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from adagrpo.data.prepared import load_training
from adagrpo.errors import UserError
from adagrpo.pipeline import ListOptions, Run
from adagrpo.pipeline import refresh as refresh_module
from adagrpo.pipeline.files import CatalogVersion, RunData
from adagrpo.pipeline.list_makers import ListMaker
from adagrpo.pipeline.new_rows import SHOWN, of_rows
from adagrpo.pipeline.refit import refit_of, refresh_of, refreshes
from adagrpo.pipeline.refresh import sentences
from adagrpo.pipeline.serve import Operation, _Wanted
from adagrpo.pipeline.status import status
from adagrpo.serving.model_manager import ModelManager

from ..command_line import command
from ..consoles import Heard

DAY, BEGIN, KNOWN, LATER = 86_400, 1_699_920_000, 7, 5  # seconds; midnight; days of the run, and after it
ITEMS, NEW = 30, 1003
NONE = dict.fromkeys(("new", "late", "repeated", "duplicates", "future"), 0)
Row = tuple[Any, int, int]


def rows_of(users: int = 60) -> list[Row]:
    """Users who mostly walk along a ring of items, one item a day; from day 7 on some have another one too."""
    draw, rows = np.random.default_rng(0), list[Row]()
    for user in range(users):
        steps = np.where(draw.random(KNOWN + LATER) < 0.2, draw.integers(0, ITEMS, KNOWN + LATER), 1)
        walk = (int(draw.integers(ITEMS)) + steps.cumsum()) % ITEMS
        rows += [(f"u{user:02d}", 10 * int(item) + 3, BEGIN + DAY * day + user) for day, item in enumerate(walk)]
    return rows


def write(path: Path, rows: Sequence[Row], header: Sequence[str] = ("user_id", "item_id", "timestamp")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def days(first: int, last: int) -> list[Row]:
    """The rows of days from `first` on and before `last`."""
    return [row for row in rows_of() if first <= (row[2] - BEGIN) // DAY < last]


@pytest.fixture(scope="module")
def decided(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("refresh")
    write(folder / "log.csv", days(0, KNOWN))
    run: Run = world.run(folder / "run", folder, decide={"margin": 0.01})
    run.decide()
    return run


@pytest.fixture
def run(decided: Run, tmp_path: Path) -> Run:
    return Run.open(shutil.copytree(decided.directory, tmp_path / "run"))


@pytest.fixture(scope="module")
def refreshed(decided: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any]]:
    """After one refresh, with an item that half of the users have from day 7 on."""
    folder = tmp_path_factory.mktemp("refreshed")
    run = Run.open(shutil.copytree(decided.directory, folder / "run"))
    new = [(f"u{user:02d}", NEW, BEGIN + DAY * day + 100 + user) for day in (7, 10) for user in range(30)]
    return run, run.refresh([write(folder / "new.csv", [*days(KNOWN, KNOWN + LATER), *new])])


def test_it_says_what_is_new_and_fits_all_of_it(refreshed: tuple[Run, dict[str, Any]]) -> None:
    run, about = refreshed
    assert about["understood"] == "new rows" and about["rows"] == {**NONE, "new": 360}
    assert (about["new_users"], about["new_items"], about["dropped_days"]) == (0, 1, [])
    assert about["first"] == "2023-11-21T00:00:00Z" and about["last"] == "2023-11-25T00:00:59Z"
    # the newer half of 360 rows begins behind the 90 of day 7, the 60 of day 8 and the first 30 of day 9
    assert about["cases_from"] == "2023-11-23T00:00:30Z" and about["cases"] == 60
    whole, trial = refresh_of(run, 1), refresh_of(run, 1, "trial")
    assert len(load_training(whole.path("prepare")).values) == 60 * 12 + 60
    assert len(load_training(trial.path("prepare")).values) == 60 * 7 + 180
    before = RunData(refit_of(run))
    items = [RunData(one).item_ids.to_list() for one in (trial, whole)]
    assert items[0] == items[1] == [*before.item_ids.to_list(), NEW]
    codes = [RunData(one).catalog.codes.tolist() for one in (trial, whole)]
    assert codes[0] == codes[1] and codes[0][:-1] == before.catalog.codes.tolist()
    counts = ListMaker(refresh_module.Models(RunData(whole))).counts()
    assert counts[-1] == 60 and counts.sum() == 60 * 12 + 60
    made = {path.name for path in whole.directory.iterdir() if path.is_dir() and path.name != ".work"}
    assert made >= {"prepare", "tokenize", "sft", "ranker", "item_knn"} and "fuse" not in made


def shown_of(rows: Sequence[Row]) -> pl.DataFrame:
    """What was shown with each row: its item, taken, and the next one of the ring, passed over."""
    shown = [
        (user, place, time - 5, int(place == item)) for user, item, time in rows for place in (item, (item + 10) % 300)
    ]
    return pl.DataFrame(shown, schema=["user_id", "item_id", "timestamp", "clicked"], orient="row")


@pytest.mark.slow
def test_what_was_shown_is_taken_along_night_after_night(world: Any, tmp_path: Path) -> None:
    write(tmp_path / "log.csv", days(0, KNOWN))
    shown_of(days(0, KNOWN)).write_csv(tmp_path / "shown.csv")
    columns = {"timestamp": "timestamp", "clicked": "clicked"}
    log = {"columns": {"timestamp": "timestamp"}, "impressions": {"logs": ["shown.csv"], "columns": columns}}
    run = world.run(tmp_path / "run", tmp_path, data=log)
    run.decide()
    for night, (first, last) in enumerate(((KNOWN, 10), (10, 12)), start=1):
        orders = write(tmp_path / f"{night}.csv", days(first, last))
        shown_of(days(first, last)).write_csv(tmp_path / f"shown-{night}.csv")
        with pytest.raises(UserError, match="says what was shown; give the orders of the same time too"):
            run.refresh([tmp_path / f"shown-{night}.csv"])
        about = run.refresh([orders, tmp_path / f"shown-{night}.csv"])
        assert about["takes_over"] and about["rows"]["shown"] == 2 * 60 * (last - first)
        assert f"{2 * 60 * (last - first)} impressions are new" in of_rows(about)
        assert about["exposure_weighted"] and any(": weighted NDCG@10 " in said for said in sentences(about))
        whole = refresh_of(run, night)
        expected = shown_of(days(0, last)).sort("user_id", "timestamp", "item_id")
        kept = pl.read_parquet(whole.path("prepare") / SHOWN)
        assert (
            kept.sort("user_id", "timestamp", "item_id").select(expected.columns).cast(expected.schema).equals(expected)
        )
        # a refit may know all that was shown, the trial only what was shown before the cases
        assert len(RunData(whole).shown.items) == 2 * 60 * last
        assert 0 < len(RunData(refresh_of(run, night, "trial")).shown.items) < 2 * 60 * last
        times = np.bincount(RunData(whole).shown.items, minlength=RunData(whole).num_items)
        assert RunData(whole).times_shown is not None and times.sum() == 2 * 60 * last
    again = tmp_path / "again.csv"
    shown_of(days(0, 12)).write_csv(again)  # the whole log once more: each row is taken once
    third = run.refresh(
        [write(tmp_path / "3.csv", [*days(0, 12), *((u, i, t + 9 * DAY) for u, i, t in days(3, 5))]), again]
    )
    assert third["understood"] == "a longer log" and third["rows"]["shown"] == 0
    assert len(pl.read_parquet(refresh_of(run, 3).path("prepare") / SHOWN)) == 2 * 60 * 12


def test_weights_go_on_for_a_tenth_of_the_epochs(refreshed: tuple[Run, dict[str, Any]]) -> None:
    run = refreshed[0]
    for name in ("sft", "ranker"):
        steps = [json.loads(row) for row in (refresh_of(run, 1).path(name) / "steps.jsonl").read_text().splitlines()]
        of_refit = (refit_of(run).path(name) / "steps.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(steps) == max(1, round(0.1 * len(of_refit)))
        # weights from elsewhere have learned nothing yet: cross-entropy over 30 items is at least log 30 = 3.4
        assert steps[0].get("nll", steps[0].get("loss")) < json.loads(of_refit[0]).get("nll", 3.4)


def test_a_refresh_answers_and_so_does_what_was_served_before(refreshed: tuple[Run, dict[str, Any]]) -> None:
    run, about = refreshed
    assert about["takes_over"] and refreshes(run) == (1, 1)
    histories = [[3, 13, 23], [NEW]]
    lists = run.recommend(histories)
    assert lists.about["why"].endswith("refreshed by interactions to 2023-11-25T00:00:59Z") and lists.items[1]
    assert lists.unknown == [[], []]
    assert run.recommend(histories, as_measured=True).unknown == [[], [NEW]]
    assert run.serve_before() == {"number": 0, "instead_of": 1}
    before = run.recommend(histories)
    assert (lists.about["refresh"], before.about["refresh"]) == (1, 0)
    assert before.about["why"].endswith("refit on all interactions") and before.scores != lists.scores
    with pytest.raises(UserError, match="serves no refresh, so there is none to go back from"):
        run.serve_before()
    refresh_module.serve_refresh(run, 1, 1)
    assert run.recommend(histories).scores == lists.scores


def test_a_service_takes_it_at_a_reload(run: Run, tmp_path: Path) -> None:
    wanted = _Wanted(run, ListOptions())

    def load(**other: Any) -> Any:
        return wanted.load(Operation(), **other)

    manager = ModelManager(load(), load)
    before = manager.now.versions
    Run.open(run.directory).refresh([write(tmp_path / "new.csv", days(7, 12))])
    assert manager.now.versions == before
    assert "refreshed by" in manager.swap().about["why"] and manager.now.versions != before


def test_logged_histories_are_those_of_the_refresh(refreshed: tuple[Run, dict[str, Any]], tmp_path: Path) -> None:
    run = refreshed[0]
    (tmp_path / "users.csv").write_text("user_id\nu00\n", encoding="utf-8")
    given = ("--run", run.directory, "--users", tmp_path / "users.csv", "--out", tmp_path / "lists", "--json")
    assert command("recommend", *given).status == 0
    mine = [row[1:] for row in rows_of() if row[0] == "u00"] + [(NEW, BEGIN + DAY * day + 100) for day in (7, 10)]
    history = [item for item, _ in sorted(mine, key=lambda row: row[1])]
    assert json.loads((tmp_path / "lists" / "summary.json").read_text(encoding="utf-8"))["refresh"] == 1
    by_file = pl.read_parquet(tmp_path / "lists" / "part-00000.parquet")["items"][0].to_list()
    assert by_file == run.recommend([history], users=["u00"]).items[0]


@pytest.mark.slow
def test_a_longer_log_is_the_same_refresh(run: Run, tmp_path: Path) -> None:
    other = Run.open(shutil.copytree(run.directory, tmp_path / "other"))
    new = run.refresh([write(tmp_path / "new.csv", days(7, 12))])
    whole = other.refresh([write(tmp_path / "whole.csv", rows_of())])
    assert whole["understood"] == "a longer log" and whole["rows"] == {**NONE, "new": 300, "repeated": 420}
    differ = {"understood", "rows", "logs", "seconds"}
    assert {key: value for key, value in whole.items() if key not in differ} == {
        key: value for key, value in new.items() if key not in differ
    }
    assert run.recommend([[3, 13]]).scores == other.recommend([[3, 13]]).scores


def test_the_next_refresh_goes_on_from_this_one(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare = refresh_module._compare
    monkeypatch.setattr(refresh_module, "_compare", lambda *given: compare(*given) | {"takes_over": True})
    for night in range(3):
        about = run.refresh([write(tmp_path / f"{night}.csv", days(7 + night, 8 + night))])
        assert (about["number"], about["before"], about["rows"]["new"]) == (night + 1, night, 60)
        # each fit goes on from that of the night before
        assert refresh_of(run, night + 1).content("sft", "best", "checkpoint.json") == {"step": 1}
    assert refreshes(run) == (3, 3)
    assert len(load_training(refresh_of(run, 3).path("prepare")).values) == 60 * 10
    assert sorted(path.name for path in (run.directory / "refresh").glob("0*")) == ["0002", "0003"]
    assert run.serve_before() == {"number": 2, "instead_of": 3}
    with pytest.raises(UserError, match="refresh 1, served before 2, is not kept any more"):
        run.serve_before()


def test_a_worse_list_is_not_served_and_its_rows_are_kept(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run.recommend([[3, 13]])
    lists = refresh_module.lists_of

    def backwards(served: Any, data: Any, cases: Any, of: Any = None) -> Any:
        found = lists(served, data, cases, of=of)
        return found if of is not None else found._replace(items=np.full_like(found.items, -1))

    with monkeypatch.context() as patch:
        patch.setattr(refresh_module, "lists_of", backwards)
        given = ("refresh", "--run", run.directory, write(tmp_path / "1.csv", days(7, 9)))
        answer = command(*given)
    assert answer.status == 3 and "the refit of fuse stays: it has 0." in answer.out
    assert refreshes(run) == (0, 1)
    after = Run.open(run.directory).recommend([[3, 13]])
    assert (after.scores, after.about) == (before.scores, before.about)
    about = Run.open(run.directory).refresh([write(tmp_path / "2.csv", days(9, 12))])
    assert about["takes_over"] and about["before"] == 0 and about["rows"]["new"] == 180
    assert len(load_training(refresh_of(run, 2).path("prepare")).values) == 60 * 12


HITS, NO = np.ones(40), np.zeros(40)


@pytest.mark.parametrize(
    ("new", "old", "margin", "why_not"),
    [
        # a loss of a half in every case, and one that is above the margin in the mean alone
        (HITS - 0.5, HITS, 0.01, "it has 0.5000 less than it, more than 0.0100, 0.01 of its own"),
        (HITS - 0.5, HITS, 0.6, ""),
        (HITS - 0.05 * (np.arange(40) < 2), HITS, 0.001, ""),
        # a mean difference of 0, and intervals of about a sixth and a third of the mean
        (HITS + np.where(np.arange(40) % 2, 0.5, -0.5), HITS, 0.01, ""),
        (HITS + np.where(np.arange(40) % 2, 1.0, -1.0), HITS, 0.01, "do not exclude a loss of 32 %"),
        (HITS + np.where(np.arange(40) % 2, 1.0, -1.0), HITS, 0.5, ""),
        (NO, NO, 0.01, ""),
    ],
)
def test_what_takes_over_is_not_worse_nor_may_it_be_much(new: Any, old: Any, margin: float, why_not: str) -> None:
    _, takes_over, why = refresh_module._verdict(new, old, margin)
    assert why_not in why and takes_over == (not why_not)


def test_cases_weigh_alike_for_both_lists(
    refreshed: tuple[Run, dict[str, Any]], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = refreshed[0].directory.parent / "new.csv"
    monkeypatch.setattr(refresh_module, "case_weights", lambda shown, power: np.full(len(shown), 2.0))
    means, twice = (about["ndcg@10"] for about in (refreshed[1], run.refresh([log])))
    assert twice == pytest.approx({name: 2 * value for name, value in means.items()}) and all(means.values())


@pytest.mark.parametrize("part", ["sft", "tokenize", ""])
def test_a_refresh_without_a_part_does_not_answer_and_is_made_again(
    refreshed: tuple[Run, dict[str, Any]], tmp_path: Path, part: str
) -> None:
    whole = refreshed[0].recommend([[3, 13, 23]])
    run = Run.open(shutil.copytree(refreshed[0].directory, tmp_path / "run"))
    shutil.rmtree(run.directory / "refresh" / "0001" / "list" / part)
    heard = Heard()
    answers = Run.open(run.directory, console=heard).recommend([[3, 13, 23]])
    refit = Run.open(shutil.copytree(refreshed[0].directory, tmp_path / "refit"))
    refit.serve_before()
    assert answers.scores == refit.recommend([[3, 13, 23]]).scores != whole.scores and answers.about["refresh"] == 0
    assert any("refresh 1 is not finished: it has no" in note for note in heard.notes)
    log = refreshed[0].directory.parent / "new.csv"
    if not part:  # without its rows there is nothing to make it of
        with pytest.raises(UserError, match=r"rows\.parquet: missing; delete .*refresh, and give all rows since"):
            Run.open(run.directory).refresh([log])
    else:
        again = Run.open(run.directory).refresh([log])
        assert (again["number"], again["rows"]["new"]) == (2, 360)
        assert Run.open(run.directory).recommend([[3, 13, 23]]).scores == whole.scores


def test_what_was_gone_back_from_can_be_taken_again(refreshed: tuple[Run, dict[str, Any]], tmp_path: Path) -> None:
    run = Run.open(shutil.copytree(refreshed[0].directory, tmp_path / "run"))
    run.serve_before()
    again = run.refresh([refreshed[0].directory.parent / "new.csv"])
    assert (again["number"], again["before"], again["rows"]) == (2, 0, refreshed[1]["rows"])
    assert run.recommend([[3, 13, 23]]).scores == refreshed[0].recommend([[3, 13, 23]]).scores


@pytest.mark.parametrize("name", ["served.json", "0001/refresh.json"])
def test_a_damaged_file_of_a_refresh_is_named(refreshed: tuple[Run, dict[str, Any]], tmp_path: Path, name: str) -> None:
    run = Run.open(shutil.copytree(refreshed[0].directory, tmp_path / "run"))
    path = run.directory / "refresh" / name
    whole = path.read_bytes()
    for damaged in (whole.replace(b'"number": 1', b'"number": 0'), whole[:-5], b""):
        assert damaged != whole
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{path}: missing, or not as it was written; delete .*/refresh, and"):
            Run.open(run.directory).recommend([[3, 13, 23]])


def test_rows_of_the_future_are_left_out_and_duplicates_counted(run: Run, tmp_path: Path) -> None:
    night, future = days(7, 9), ("u00", 3, BEGIN + 100 * 365 * DAY)
    about = run.refresh([write(tmp_path / "1.csv", [*night, night[0], future])])
    assert about["rows"] == {**NONE, "new": 121, "duplicates": 1, "future": 1}
    said = "; ".join(of_rows(about))
    assert "1 rows repeat user, item and time of another, and count again" in said
    assert "1 rows lie in the future, the last at 2123-" in said and about["last"].startswith("2023-11-22")
    assert run.refresh([write(tmp_path / "2.csv", days(9, 12))])["rows"]["new"] == 180


def test_few_cases_change_nothing(run: Run, tmp_path: Path) -> None:
    few = [row for row in days(7, 8) if row[0] < "u10"]
    about = run.refresh([write(tmp_path / "few.csv", few)])
    assert about["why"] == "5 cases are too few to compare two lists; the rows are kept for the next refresh"
    assert not about["takes_over"] and refreshes(run) == (0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["prepare", "tokenize", "sft", "ranker", "item_knn", "write_refresh", "serve_refresh"])
def test_killed_at_any_step_the_old_list_answers_and_the_same_command_goes_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    new = write(tmp_path / "new.csv", days(7, 12))
    before = run.recommend([[3, 13]]).scores
    make, met = refresh_module.make, list[str]()

    def killed(made: Any, name: str, declared: Any) -> Path:
        found: Path = make(made, name, declared)
        met.append(f"{made.directory.name}/{name}")
        if name == step and made.directory.name == "list":
            raise KeyboardInterrupt
        return found

    def raises(*given: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if step in ("write_refresh", "serve_refresh"):
            patch.setattr(refresh_module, step, raises)
        patch.setattr(refresh_module, "make", killed)
        Run.open(run.directory).refresh([new])
    assert Run.open(run.directory).recommend([[3, 13]]).scores == before
    again = Run.open(run.directory)
    about = again.refresh([new])
    assert about["number"] == 1 and about["takes_over"] and "refreshed by" in again.recommend([[3, 13]]).about["why"]
    events = (refresh_of(run, 1).directory / "events.jsonl").read_text(encoding="utf-8").splitlines()
    ended = [row["stage"] for row in map(json.loads, events) if row["event"] == "end"]
    assert len(ended) == len(set(ended))  # nothing is fitted twice
    assert again.refresh([new]) == about and refreshes(run) == (1, 1)  # nor by the same command once more


def test_another_decision_or_catalogue_takes_the_place_of_a_refresh(
    refreshed: tuple[Run, dict[str, Any]], tmp_path: Path
) -> None:
    run = Run.open(shutil.copytree(refreshed[0].directory, tmp_path / "run"))
    first = run.recommend([[3, 13, 23]]).items[0][0]
    assert status(run.directory)["refresh"] == {"state": "done", "why": ""}
    run.update_catalog(delist=[first])
    assert status(run.directory)["refresh"]["state"] == "not served"
    heard = Heard()
    lists = Run.open(run.directory, console=heard).recommend([[3, 13, 23]])
    assert first not in lists.items[0] and lists.about["why"].endswith("refit on all interactions")
    assert "refresh 1 is of version 0000-" in heard.notes[0] and heard.notes[0].endswith(f"--run {run.directory}`")
    about = run.refresh([write(tmp_path / "more.csv", [(u, i, t + DAY) for u, i, t in days(11, 12)])])
    assert about["takes_over"] and about["number"] == 2 and about["before"] == 0
    lists = run.recommend([[3, 13, 23]])
    assert first not in lists.items[0] and "refreshed by" in lists.about["why"]


@pytest.mark.parametrize("wanted", [True, False])
def test_a_new_item_is_in_lists_where_it_was_taken_as_often_as_what_it_displaced(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    # 30 users have it on day 7; on day 10 it is the first that they take, of the cases, or the second
    earlier = [(f"u{user:02d}", NEW, BEGIN + DAY * 7 + 100 + user) for user in range(30)]
    again = [(f"u{user:02d}", NEW, BEGIN + DAY * 10 + (-100 if wanted else 100) + user) for user in range(30)]
    lists = refresh_module.lists_of

    def before_all_others(served: Any, data: Any, cases: Any, of: Any = None) -> Any:
        found = lists(served, data, cases, of=of)
        if of is not None:
            return found
        return found._replace(items=np.insert(np.where(found.items == ITEMS, -1, found.items), 0, ITEMS, axis=1))

    monkeypatch.setattr(refresh_module, "lists_of", before_all_others)
    about = run.refresh([write(tmp_path / "new.csv", [*days(7, 12), *earlier, *again])])
    assert about["takes_over"] and about["candidates"] == 1
    values = about["by_least"]  # it has 30 interactions before the cases, and 60 in all
    assert values["50"] == values["None"] and len({values[least] for least in ("1", "2", "5", "10", "20")}) == 1
    assert (values["20"] > values["None"]) == wanted
    assert (about["least"], about["waiting"]) == ((20, []) if wanted else (None, [NEW]))
    assert about["items_admitted"] == int(wanted)
    assert CatalogVersion(refresh_of(run, 1), 0).codes.listed.tolist() == [*[True] * ITEMS, wanted]
    found = run.recommend([[3, 13], [NEW]], k=10)
    assert wanted or NEW not in {item for items in found.items for item in items}
    monkeypatch.undo()
    more = [(user, item, at + DAY) for user, item, at in days(11, 12)]
    about = run.refresh([write(tmp_path / "more.csv", more)])  # it is asked again of what waits
    assert about["new_items"] == 0 and about["candidates"] == int(not wanted)


def test_places_of_items_that_wait_go_to_the_next() -> None:
    lists, kept = np.array([[2, 0, 1, -1], [0, 3, 2, 1]]), np.array([True, True, False, False])
    assert refresh_module._without(lists, kept).tolist() == [[0, 1, -1, -1], [0, 1, -1, -1]]


@pytest.mark.slow
def test_a_list_without_a_policy_is_refreshed_too(world: Any, tmp_path: Path) -> None:
    write(tmp_path / "log.csv", days(0, KNOWN))
    run: Run = world.run(tmp_path / "run", tmp_path, decide={"margin": 0.99})
    assert run.decide()["chosen"] == "item_knn"
    new = [(f"u{user:02d}", NEW, BEGIN + DAY * 7 + 100 + user) for user in range(60)]
    assert run.refresh([write(tmp_path / "new.csv", [*days(7, 12), *new])])["takes_over"]
    assert run.recommend([[3]]).about["arm"] == "item_knn"


BAD = {
    "older": (days(0, 3), None, "ends at 2023-11-16T00:00:59Z, and .* has all to 2023-11-20T00:00:59Z: nothing is new"),
    "as_it_is": (days(0, 7), None, "nothing is new; give a log that ends later"),
    "older_only": (
        [(u, i, t - 60 * DAY) for u, i, t in days(0, 3)],
        None,
        "all 180 rows are from before 2023-11-20",
    ),
    "columns": (days(7, 9), ("user_id", "item", "timestamp"), "item_id"),
    "users": ([(f"person-{u}", i, t) for u, i, t in days(7, 9)], None, "none of its 60 users is one of the 60 of"),
    "times": ([(u, i, f"on {t}") for u, i, t in days(7, 9)], None, "timestamp"),
    "unit": (
        [(u, i, 1000 * t) for u, i, t in days(7, 9)],
        None,
        "its times are in milliseconds, and those of .* seconds",
    ),
    "zeros": ([(u, f"0{i}", t) for u, i, t in days(7, 9)], None, "item_id '0.*': the ids of .* are whole numbers"),
    "future": (
        [(u, i, t + 10**10) for u, i, t in days(7, 9)],
        None,
        "all rows lie in the future, the last at 23",
    ),
    "ids": (
        [(u, f"item-{i}", t) for u, i, t in days(7, 9)],
        None,
        "item_id 'item-.*': the ids of .* are whole numbers",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(decided: Run, tmp_path: Path, name: str) -> None:
    rows, header, said = BAD[name]
    log = write(tmp_path / f"{name}.csv", rows, header or ("user_id", "item_id", "timestamp"))
    answer = command("refresh", "--run", decided.directory, log)
    assert answer.status == 2 and answer.err.strip().count("\n") == 0
    assert re.search(said, answer.err), answer.err
    assert not (decided.directory / "refresh" / "served.json").exists()


def test_a_dropped_day_is_said(run: Run, tmp_path: Path) -> None:
    rows = [(user, item, at + 7 * DAY if (at - BEGIN) // DAY > 6 else at) for user, item, at in rows_of()]
    about = run.refresh([write(tmp_path / "gap.csv", [row for row in rows if (row[2] - BEGIN) // DAY != 16])])
    # the run has the week of 14 November whole, and the next rows are of 28 November on, but for the 30th
    assert about["dropped_days"] == [f"2023-11-{day}" for day in (21, 22, 23, 24, 25, 26, 27)]


def test_it_takes_a_decision_and_its_refit(world: Any, tmp_path: Path) -> None:
    write(tmp_path / "log.csv", days(0, KNOWN))
    run = world.run(tmp_path / "run", tmp_path, decide={"refit": False})
    run.prepare()
    answer = command("refresh", "--run", run.directory, tmp_path / "log.csv")
    assert answer.status == 2 and "goes on from the refit of the list that decide chose" in answer.err
    assert "give log files with newer rows, or --back" in command("refresh", "--run", run.directory).err
