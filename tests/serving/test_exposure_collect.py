"""Exposure logs of other machines in one folder, and what is no row; and a log that cannot be written."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from adagrpo.errors import UserError
from adagrpo.exposures import exposure_store
from adagrpo.exposures.exposure_collect import COLLECTED, Collected, collect_log
from adagrpo.exposures.exposure_database import OPEN
from adagrpo.exposures.exposure_log import Exposure, Feedback, SinkFailed, decode, encode
from adagrpo.exposures.exposure_store import KIND, LocalExposureLog, locate_row, parts_of, read_parts, refused_rows
from adagrpo.pipeline.stages.prepare import latest_exposures
from adagrpo.serving.exposure_rows import ExposureRows
from adagrpo.serving.options import Limits, Options
from adagrpo.storage.locks import lock_folder

from ..command_line import command

QUICK = Limits(grace_seconds=0.0)
NAN, INF = float("nan"), float("inf")


def answer(name: str = "r1", **more: Any) -> Exposure:
    given: dict[str, Any] = {"request_id": name, "time": 1.0, "slate": ("a", 3), "arm": "x", "model_version": "m"}
    return Exposure(**(given | {"catalog_version": "c", "user_hash": "u", "key_version": "k"} | more))


def click(name: str = "r1") -> Feedback:
    return Feedback(request_id=name, item="a", kind="click", time=2.0)


def line(**changes: Any) -> str:
    return json.dumps(json.loads(encode(answer())) | changes)


def rows_of(log: Path) -> list[str]:
    latest_exposures(log, publish=True)
    return sorted(read_parts(parts_of(log))[0]["request_id"])


def test_a_line_holds_the_whole_row() -> None:
    drawn = answer(
        log_propensities=(-0.5, -1.0), log_inclusions=(-0.1, -0.2), seed=7, temperature=0.5, positions=(1, 0)
    )
    for row in (drawn, click()):
        assert decode(encode(row)) == row == decode(encode(row).encode())


BAD: dict[str, tuple[str, str]] = {
    "time is a text": (line(time="x"), "time: Input should be a valid number"),
    "time is nothing": (line(time=None), "time: "),
    "time is not finite": (line(time=NAN), "time: "),
    "time is infinite": (line(time=INF), "time: "),
    "time of no calendar": (line()[:-1] + ',"time":9e99}', "time: "),
    "latency is not finite": (line(latency_ms=NAN), "latency_ms: "),
    "id is a number": (line(request_id=5), "request_id: Input should be a valid string"),
    "id with a NUL": (line(request_id="a\0b"), "request_id: "),
    "slate is a text": (line(slate="abc"), "slate: "),
    "slate is nested": (line(slate=[["a"], {"b": 1}]), "slate.0."),
    "slate is of fractions": (line(slate=[1.5]), "slate.0."),
    "positions are texts": (line(positions=["x", "y"]), "positions.0: "),
    "experiment is a number": (line(experiment=5), "experiment: Input should be a valid string"),
    "teams are numbers": (line(teams=[1, 2]), "teams.0: "),
    "seed is too large": (line(seed=10**30), "seed: "),
    "source is an object": (line(source={"a": 1}), "source: "),
    "a propensity too few": (line(log_propensities=[-1.0]), "log_propensities has 1 values"),
    "a user without a key": (line(key_version=None), "key_version: "),
    "an experiment without its plan": (line(experiment="e"), "salt_version: "),
    "another field": (line(other=1), "other: "),
    "deep": ("[" * 100_000, "not a line of JSON"),
    "no row at all": ("[]", ""),
    "feedback of no time": (json.dumps(json.loads(encode(click())) | {"time": "x"}), "time: "),
    "feedback of an infinite value": (json.dumps(json.loads(encode(click())) | {"value": INF}), "value: "),
}


@pytest.mark.parametrize(("text", "why"), BAD.values(), ids=BAD)
def test_a_row_that_is_none_is_refused_alone(tmp_path: Path, text: str, why: str) -> None:
    """One of them let no part be made any more."""
    lines = [encode(answer("r2")), text, encode(answer("r3")), encode(click("r3"))]
    (tmp_path / "rows.jsonl").write_text("".join(f"{one}\n" for one in lines), encoding="utf-8")
    found = collect_log([tmp_path / "rows.jsonl"], tmp_path / "log")
    (refused,) = found.refused
    assert refused.startswith(f"{tmp_path / 'rows.jsonl'}, line 2: {why}") and "\n" not in refused
    assert (found.answers, found.feedback) == (2, 1) and rows_of(tmp_path / "log") == ["r2", "r3"]


def test_logs_of_two_machines_become_one_and_nothing_is_read_twice(tmp_path: Path) -> None:
    for name in ("one", "two"):
        log = LocalExposureLog(tmp_path / name)
        log.write([answer("both"), answer(name)])
        log.feedback([click(name)])
        log.rotate()
        log.close()
        shutil.copytree(tmp_path / name / "parts", tmp_path / "shipped" / name)
    (tmp_path / "shipped" / "more.jsonl").write_text(f"{encode(answer('more'))}\n", encoding="utf-8")
    target, shipped = tmp_path / "log", tmp_path / "shipped"
    half = shipped / "two" / "000002"  # as it is while it is being copied
    shutil.copytree(shipped / "two" / "000001", half)
    (half / "manifest.json").unlink()
    found = collect_log([shipped], target)
    assert (found.answers, found.answers_repeated, found.feedback) == (5, 1, 2)
    assert len(found.refused) == 1 and "000002: no manifest.json here" in found.refused[0]
    assert rows_of(target) == ["both", "more", "one", "two"]
    shutil.rmtree(half)
    assert collect_log([shipped], target) == Collected()
    with (target / COLLECTED).open("a") as record:
        record.write("cut off")  # by a kill
    with (shipped / "more.jsonl").open("a", encoding="utf-8") as file:
        file.write(f"{encode(answer('later'))}\n")
    found = collect_log([shipped], target)
    assert (found.answers, found.answers_repeated) == (2, 1) and rows_of(target)[1] == "later"
    assert collect_log([shipped], target) == Collected()
    with pytest.raises(UserError, match="nowhere: no such file"):
        collect_log([tmp_path / "nowhere"], target)


def test_rows_that_are_in_no_part_yet_come_too(tmp_path: Path) -> None:
    """Of a service that has ended, of one that was killed, and of one that writes on; each row once."""
    for name in ("ended", "killed", "serving"):
        log = LocalExposureLog(tmp_path / "logs" / name)
        log.write([answer(f"{name}-{number}") for number in range(3)])
        log.rotate()
        log.write([answer(f"{name}-{number}") for number in range(3, 5)])
        log.feedback([click(f"{name}-4")])
        if name == "killed":
            shutil.copytree(tmp_path / "logs" / name, tmp_path / "as it was")
        if name != "serving":
            log.close()
    shutil.rmtree(tmp_path / "logs" / "killed")
    (tmp_path / "as it was").rename(tmp_path / "logs" / "killed")
    assert (tmp_path / "logs" / "killed" / f"{OPEN}-wal").stat().st_size > 0
    target = tmp_path / "logs" / "all"  # a log among the others, which is no source of itself
    found = collect_log([tmp_path / "logs"], target)
    assert (found.answers, found.feedback, found.refused) == (15, 3, [])
    log.write([answer("later")])
    found = collect_log([tmp_path / "logs" / "serving"], target)
    assert (found.answers, found.answers_repeated, found.refused) == (1, 0, [])
    log.close()
    assert len(rows_of(target)) == 16


def test_rows_that_no_part_can_be_made_of_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposure_store, "PATIENCE", 0.1)
    for name in ("done", "open"):
        log = LocalExposureLog(tmp_path / name)
        log.write([answer(f"{name}-{number}") for number in range(3)])
        log.feedback([click(f"{name}-0")])
        log.rotate()
        if name == "open":
            log.write([answer(f"late-{number}") for number in range(3)])
            log.feedback([click("late-0")])
        log.close()
    with lock_folder(tmp_path / "done", KIND), lock_folder(tmp_path / "open", KIND):  # by a process that hangs
        status, out, err = command("collect", tmp_path / "done", tmp_path / "open", "--to", tmp_path / "log", "--json")
    (refused,) = json.loads(out)["refused_rows"]
    assert (status, err) == (0, "") and json.loads(out)["answers"] == 6
    assert refused.startswith(f"{tmp_path / 'open' / OPEN}: 4 rows are in no part and stay out (")
    assert "is at work here; wait until it ends" in refused
    (tmp_path / "open" / OPEN).write_bytes(b"x" * 5000)
    (refused,) = collect_log([tmp_path / "open"], tmp_path / "log").refused
    assert refused.startswith(f"{tmp_path / 'open' / OPEN}: its rows that are in no part stay out (")


HARMED = {
    "garbage": "UPDATE exposures SET row = 'garbage' WHERE number = 5",
    "bytes": "UPDATE exposures SET row = x'ff00ff' WHERE number = 5",
    "text of no unicode": "UPDATE exposures SET row = CAST(x'22ff22' AS TEXT) WHERE number = 5",
    "time": "UPDATE exposures SET row = json_set(row, '$.time', 'abc') WHERE number = 5",
    "slate": "UPDATE exposures SET row = json_set(row, '$.slate', null) WHERE number = 5",
    "user": "UPDATE exposures SET row = json_set(row, '$.user_hash', 5) WHERE number = 5",
    "time of feedback": "UPDATE feedback SET time = 'xx' WHERE number = 5",
    "value of feedback": "UPDATE feedback SET value = 9e999 WHERE number = 5",
}


@pytest.mark.parametrize("statement", HARMED.values(), ids=HARMED)
def test_a_damaged_row_of_the_database_is_named_and_the_others_go_on(tmp_path: Path, statement: str) -> None:
    log = LocalExposureLog(tmp_path)
    log.write([answer(f"r{number}") for number in range(10)])
    log.feedback([click(f"r{number}") for number in range(10)])
    log.close()
    with closing(sqlite3.connect(tmp_path / OPEN)) as connection:
        connection.execute(statement)
        connection.commit()
    latest_exposures(tmp_path, publish=True)
    parts = parts_of(tmp_path)
    (refused,) = refused_rows(parts)
    table = "feedback" if "feedback" in statement else "exposures"
    assert refused.startswith(f"{tmp_path / OPEN}, table {table}, row 5: ")
    assert sum(map(len, read_parts(parts))) == 19
    log = LocalExposureLog(tmp_path)
    assert log.write([answer("r4", arm="y")])[0].arm == ("x" if table == "feedback" else "y")  # it is on record no more
    log.close()


@pytest.mark.parametrize(
    "row", [(1, 3000, 10, 1), (1, -1, -1, 0), (1, 9, 9, 0)], ids=["published", "negative", "begun"]
)
def test_a_false_row_of_parts_drops_no_rows_in_silence(tmp_path: Path, row: tuple[int, ...]) -> None:
    log = LocalExposureLog(tmp_path)
    log.write([answer(f"r{number}") for number in range(6000)])
    log.close()
    with closing(sqlite3.connect(tmp_path / OPEN)) as connection:
        columns = "(number, last_exposure, last_feedback, published)"
        connection.execute(f"INSERT INTO parts {columns} VALUES (?, ?, ?, ?)", row)
        connection.commit()
    with pytest.raises(UserError, match=r"open\.sqlite: table parts, row 1 is not as it was written"):
        latest_exposures(tmp_path, publish=True)
    with pytest.raises(UserError, match=r"table parts, row 1"):
        LocalExposureLog(tmp_path)
    with closing(sqlite3.connect(tmp_path / OPEN)) as connection:
        connection.execute("DELETE FROM parts")  # as the message says
        connection.commit()
    assert len(rows_of(tmp_path)) == 6000


def test_a_part_of_other_columns_is_refused_by_name_and_a_row_has_its_place(tmp_path: Path) -> None:
    log = LocalExposureLog(tmp_path)
    for name in "ab":
        log.write([answer(name), answer(name + name)])
        log.rotate()
    log.close()
    parts = parts_of(tmp_path)
    assert locate_row(parts, 0) == f"{parts[0] / 'exposures.parquet'}, row 1"
    assert locate_row(parts, 3) == f"{parts[1] / 'exposures.parquet'}, row 2"
    from adagrpo.storage.artifacts import seal

    table = pl.read_parquet(parts[0] / "exposures.parquet").with_columns(pl.col("time").cast(pl.String))
    table.write_parquet(parts[0] / "exposures.parquet")
    seal(parts[0], kind="part of an exposure log", fingerprint="x")
    with pytest.raises(UserError, match=r"000001/exposures\.parquet: holds no rows of this version .* \(time\)"):
        read_parts(parts)


class Away:
    """A sink that is away, and says so."""

    def write(self, rows: list[Exposure], together: Any = None) -> list[Exposure]:
        raise SinkFailed("the disk said: no")

    def feedback(self, rows: list[Feedback]) -> Any:
        raise SinkFailed("the disk said: no")

    def close(self) -> None:
        pass


def test_a_failed_log_is_counted_and_logged_with_its_reason(
    stub: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    service = stub(Options(limits=QUICK, exposures=Away()))
    status, body, head = service.ask("/v1/recommend", {"history": [1], "k": 2})
    assert status == 503 and "retry-after" in head and "the disk" not in body["detail"]
    event = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (event["event"], event["outcome"], event["why"]) == ("exposure_log", "failed", "the disk said: no")
    assert "adagrpo_exposure_failures_total 1.0" in service.ask("/metrics")[1]


def test_nobody_waits_for_a_log_that_was_away_a_moment_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    rows = ExposureRows(Away())
    monkeypatch.setattr("adagrpo.serving.exposure_rows.time.monotonic", lambda: now[0])

    def slow(seconds: float) -> None:
        def work() -> None:
            now[0] += seconds
            raise SinkFailed("no")

        with pytest.raises(SinkFailed, match=r"^no$"):
            rows._try("lists", work)

    slow(0.1)
    slow(2.0)  # a quick failure lets the next one try at once
    with pytest.raises(SinkFailed, match="a moment ago"):
        rows._try("lists", lambda: None)
    now[0] += 1.1
    assert rows._try("lists", lambda: 3) == 3
    rows.close()
