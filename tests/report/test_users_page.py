"""The page of some users: by hand, and equal to the measured lists of a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from adagrpo.data.prepared import load_cases, load_item_ids, load_user_ids
from adagrpo.pipeline import Run
from adagrpo.pipeline.current_files import CurrentFiles, shown_users
from adagrpo.report.run_page import MARK, ShownUser, write_users


def test_lists_stand_beside_each_other_and_the_hit_is_marked(tmp_path: Path) -> None:
    lists = {"fuse": [("a <b>", False), ("tent", True)], "popularity": [("tent", True)]}
    page = write_users(tmp_path, "shop", [ShownUser("u1", ["boot", "sock"], 3, ["tent"], lists)])
    text = page.read_text(encoding="utf-8")
    assert "Had: 3 earlier items, then boot; sock." in text and "Took next: tent." in text
    rows = re.findall(r"<tr>(.*?)</tr>", text)
    cells = [
        [re.sub(r"<(?!b>)[^>]*>", "", cell) for cell in re.findall(r"<t[dh].*?>(.*?)</t[dh]>", row)] for row in rows
    ]
    assert cells == [
        ["rank", "fuse", "popularity"],
        ["1", "a &lt;b&gt;", f"{MARK}tent"],
        ["2", f"{MARK}tent", "–"],
    ]


def test_the_page_holds_what_was_measured(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adagrpo.pipeline.current_files.HISTORY", 4)
    run = Run.open(copied)
    users = shown_users(CurrentFiles(run))
    cases, ids = load_cases(run.path("prepare"), "test"), load_item_ids(run.path("prepare")).to_list()
    names = load_user_ids(run.path("prepare")).gather(cases.users).to_list()
    assert len(users) == 20 == len({one.user for one in users}) and {one.user for one in users} <= {*names}
    measured: dict[str, Any] = {}
    for name, place in (("sft", "evaluate/sft"), ("nll", "evaluate/nll/best"), ("popularity", "evaluate/popularity")):
        table = pl.read_parquet(run.path(place) / "predictions.parquet").sort("rank")
        measured[name] = dict(table.group_by("user_id", maintain_order=True).agg("item_id").iter_rows())
    hits = 0
    for one in users:
        row = names.index(one.user)
        history, wanted = [str(ids[item]) for item in cases.histories.row(row)], str(ids[cases.targets[row]])
        assert (one.history, one.earlier, one.wanted) == (history[-4:], max(0, len(history) - 4), [wanted])
        for name, found in measured.items():
            assert one.lists[name] == [(str(item), str(item) == wanted) for item in found[one.user][:10]]
        hits += sum(hit for found in one.lists.values() for _, hit in found)
    run.report()
    page = (copied / "users.html").read_text(encoding="utf-8")
    assert hits == page.count(f"<strong>{MARK}") > 0
    assert '<a href="users.html">' in (copied / "report.html").read_text(encoding="utf-8")
