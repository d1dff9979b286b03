from __future__ import annotations

import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from adagrpo.errors import UserError
from adagrpo.exposures import exposure_database, exposure_store
from adagrpo.exposures.exposure_database import OPEN, begin_part, connect, transaction
from adagrpo.exposures.exposure_log import Exposure, Feedback, SinkFailed
from adagrpo.exposures.exposure_store import LocalExposureLog, parts_of, read_parts, rotate


def row(request: str, **more: object) -> Exposure:
    given = {"request_id": request, "time": 1000.0, "slate": (3, "x"), "arm": "nll", "model_version": "m1"}
    return Exposure(**(given | {"catalog_version": "c1", "user_hash": "u", "key_version": "k"} | more))


def click(request: str, item: int | str = 3, kind: str = "click") -> Feedback:
    return Feedback(request_id=request, item=item, kind=kind, time=1001.0)


def ids(directory: Path) -> list[str]:
    """Request ids of all parts, once everything is in one."""
    rotate(directory)
    return read_parts(parts_of(directory))[0]["request_id"].to_list()


def test_a_row_comes_back_as_it_was_written(tmp_path: Path) -> None:
    log = LocalExposureLog(tmp_path / "log")
    sampled = row(
        "b", log_propensities=(-0.1, -2.5), log_inclusions=(-0.05, -1.0), temperature=0.5, seed=7, positions=(4, 5)
    )
    assert log.write([row("a"), sampled]) == [row("a"), sampled]
    log.close()
    rotate(tmp_path / "log")
    exposures, feedback = read_parts(parts_of(tmp_path / "log"))
    first, second = exposures.to_dicts()
    assert first["slate"] == ["3", "x"] and first["positions"] == [0, 1] and first["log_propensities"] is None
    assert second["log_propensities"] == [-0.1, -2.5] and second["log_inclusions"] == [-0.05, -1.0]
    assert (second["positions"], second["temperature"], second["seed"]) == ([4, 5], 0.5, 7)
    assert len(feedback) == 0


def test_a_retry_gets_the_row_on_record_and_writes_none(tmp_path: Path) -> None:
    log = LocalExposureLog(tmp_path / "log")
    first = row("a", slate=(1, 2))
    assert log.write([first, row("a", slate=(9,))]) == [first, first]
    assert log.write([row("a", slate=(9,))]) == [first]
    log.rotate()
    assert log.write([row("a", slate=(9,))]) == [first]  # also after it is in a part
    log.close()
    assert ids(tmp_path / "log") == ["a"]


def test_beyond_what_is_remembered_a_retry_is_written_again(tmp_path: Path) -> None:
    log = LocalExposureLog(tmp_path / "log", kept_rows=1)
    log.write([row("a"), row("b")])
    log.rotate()
    again = row("a", slate=(9,))
    assert log.write([again]) == [again]
    log.close()
    assert ids(tmp_path / "log") == ["a", "b", "a"]


def test_feedback_counts_once_and_says_what_is_unknown(tmp_path: Path) -> None:
    log = LocalExposureLog(tmp_path / "log")
    log.write([row("a")])
    assert log.feedback([click("a"), click("a"), click("a", "3")]) == ["stored", "repeated", "repeated"]  # one item
    assert log.feedback([click("a", kind="purchase"), click("a", 77), click("z")]) == ["stored", "unknown", "unknown"]
    assert log.feedback([click("a")]) == ["repeated"]
    log.close()
    rotate(tmp_path / "log")
    assert len(read_parts(parts_of(tmp_path / "log"))[1]) == 4


def test_callers_at_once_have_one_row_for_each_id(tmp_path: Path) -> None:
    log = LocalExposureLog(tmp_path / "log", rotate_rows=150)
    with ThreadPoolExecutor(16) as pool:
        recorded = list(pool.map(lambda number: log.write([row(f"r{number % 500}", slate=(number,))]), range(1000)))
    log.close()
    by_id = {}
    for (answer,) in recorded:  # whoever asked for an id was given the same slate
        assert by_id.setdefault(answer.request_id, answer.slate) == answer.slate
    assert sorted(ids(tmp_path / "log")) == sorted(f"r{number}" for number in range(500))


def test_two_logs_of_one_folder_write_beside_each_other(tmp_path: Path) -> None:
    logs = [LocalExposureLog(tmp_path / "log", rotate_rows=40) for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: logs[number % 2].write([row(f"r{number // 2}")]), range(200)))
    for log in logs:
        log.close()
    assert sorted(ids(tmp_path / "log")) == sorted(f"r{number}" for number in range(100))


def test_who_writes_almost_without_a_pause_keeps_nobody_out(tmp_path: Path) -> None:
    """SQLite alone looks again every tenth of a second, and would seldom meet a pause of a hundredth."""
    log = LocalExposureLog(tmp_path)
    begun, ended = threading.Event(), threading.Event()

    def write_on() -> None:
        with closing(connect(tmp_path)) as other:
            while not ended.is_set():
                with transaction(other):
                    begun.set()
                    time.sleep(0.1)
                time.sleep(0.01)

    thread = threading.Thread(target=write_on)
    thread.start()
    assert begun.wait(5)
    started = time.monotonic()
    for number in range(4):
        log.write([row(f"r{number}")])
    assert time.monotonic() - started < 2
    ended.set()
    thread.join()
    log.close()


@pytest.mark.parametrize("moment", ["before", "written", "published"])
def test_a_part_that_was_cut_off_is_finished_and_no_row_is_lost_or_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    log = LocalExposureLog(tmp_path / "log")
    log.write([row("a"), row("b")])
    log.feedback([click("a")])

    def cut(*arguments: object) -> None:
        raise KeyboardInterrupt

    name = {"before": "_exposure_table", "written": "publish", "published": "finish_part"}[moment]
    with monkeypatch.context() as patched:
        patched.setattr(exposure_database if moment == "published" else exposure_store, name, cut)
        with pytest.raises(KeyboardInterrupt):
            log.rotate()
    log.write([row("c")])
    assert log.rotate() == [1, 2]
    log.close()
    assert [part.name for part in parts_of(tmp_path / "log")] == ["000001", "000002"]
    exposures, feedback = read_parts(parts_of(tmp_path / "log"))
    assert exposures["request_id"].to_list() == ["a", "b", "c"] and len(feedback) == 1
    assert not list((tmp_path / "log" / "parts").glob(".*"))


def test_a_database_that_was_removed_or_put_back_from_a_copy_takes_no_number_of_a_part(tmp_path: Path) -> None:
    folder, copy = tmp_path / "log", tmp_path / "copy"
    log = LocalExposureLog(folder)
    log.write([row("a"), row("b")])
    log.close()
    rotate(folder)
    copy.write_bytes((folder / OPEN).read_bytes())
    (folder / OPEN).unlink()
    log = LocalExposureLog(folder)
    log.write([row("c"), row("d")])  # as many as are in the part that is there
    assert log.rotate() == [2]
    log.close()
    (folder / OPEN).write_bytes(copy.read_bytes())
    log = LocalExposureLog(folder)
    log.write([row("e")])
    assert log.rotate() == [3]
    log.write([row("f")])
    assert log.rotate() == [4]
    log.close()
    assert ids(folder) == ["a", "b", "c", "d", "e", "f"]


def test_a_part_of_other_rows_is_not_taken_for_the_one_that_was_begun(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    log = LocalExposureLog(folder)
    log.write([row("a")])
    assert log.rotate() == [1]
    log.write([row("b"), row("c")])
    log.close()
    with closing(connect(folder)) as connection:
        begin_part(connection)
    shutil.copytree(folder / "parts/000001", folder / "parts/000002")
    with pytest.raises(UserError, match=r"000002: holds other rows than .*open.sqlite gives it"):
        rotate(folder)
    shutil.rmtree(folder / "parts/000002")
    assert ids(folder) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (lambda part: (part / "exposures.parquet").write_bytes(b"PAR1"), r"exposures.parquet: content differs"),
        (lambda part: (part / "feedback.parquet").unlink(), r"feedback.parquet: missing"),
        (lambda part: (part / "manifest.json").unlink(), r"000001: no manifest.json here"),
        (lambda part: (part / "manifest.json").write_text("{"), r"manifest.json: damaged manifest"),
    ],
)
def test_nobody_is_told_to_delete_a_part_that_is_damaged(
    tmp_path: Path, harm: Callable[[Path], object], what: str
) -> None:
    log = LocalExposureLog(tmp_path / "log")
    log.write([row("a")])
    log.rotate()
    log.close()
    harm(tmp_path / "log/parts/000001")
    with pytest.raises(UserError, match=rf"{what}.*; the rows of a part are nowhere else: put it back") as refused:
        read_parts(parts_of(tmp_path / "log"))
    assert "; delete" not in str(refused.value)


def test_a_bad_row_is_refused_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unicode"):
        row("\ud800")
    with pytest.raises(ValueError, match="log_propensities has 1 values, the slate 2 items"):
        row("a", log_propensities=(0.1,))
    with pytest.raises(ValueError, match="finite"):
        row("a", log_inclusions=(0.0, float("-inf")))
    with pytest.raises(ValueError, match="finite"):
        replace(click("a"), value=float("nan"))
    log = LocalExposureLog(tmp_path / "log")
    with pytest.raises(ValueError):
        log.write([row("a"), row("b", latency_ms=float("nan"))])
    log.close()
    assert ids(tmp_path / "log") == []


def test_what_the_disk_refuses_is_not_logged(tmp_path: Path) -> None:
    log = LocalExposureLog(tmp_path / "log")
    log.write([row("a")])
    pages = log._connection.execute("PRAGMA page_count").fetchone()[0]
    log._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(SinkFailed, match=r"open\.sqlite: database or disk is full"):
        log.write([row(f"{number:050d}", slate=tuple(range(100))) for number in range(100)])
    log._connection.execute("PRAGMA max_page_count = 1000000")
    log.write([row("b")])
    log.close()
    assert ids(tmp_path / "log") == ["a", "b"]


def test_rows_are_rotated_by_number_and_by_time(tmp_path: Path) -> None:
    made = threading.Event()
    log = LocalExposureLog(tmp_path / "log", rotate_rows=3, rotate_seconds=60)
    log.write([row("a"), row("b"), row("c")])
    timed = LocalExposureLog(tmp_path / "timed", rotate_seconds=0.05)
    timed.write([row("a")])
    for _ in range(200):
        if parts_of(tmp_path / "log") and parts_of(tmp_path / "timed"):
            break
        made.wait(0.02)
    log.close()
    timed.close()
    assert len(parts_of(tmp_path / "log")) == 1 and len(parts_of(tmp_path / "timed")) == 1


def test_rows_of_published_parts_leave_the_database(tmp_path: Path) -> None:
    log = LocalExposureLog(tmp_path / "log", kept_rows=2)
    log.write([row(str(number)) for number in range(10)])
    log.rotate()
    left = [number for (number,) in log._connection.execute("SELECT number FROM exposures ORDER BY number")]
    log.close()
    assert left == [9, 10]


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty and no exposure log"):
        LocalExposureLog(tmp_path)
    assert exposure_database.OPEN not in {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("name", [OPEN, f"{OPEN}-wal", "collected.txt", "parts"])
def test_nothing_is_written_behind_a_link(tmp_path: Path, name: str) -> None:
    log, victim = tmp_path / "log", tmp_path / "victim"
    LocalExposureLog(log).close()
    (log / name).unlink(missing_ok=True)
    with closing(sqlite3.connect(victim)) as connection:
        connection.execute("CREATE TABLE mine (text TEXT)")
        connection.commit()
    before = victim.read_bytes()
    (log / name).symlink_to(victim)
    for write in (lambda: LocalExposureLog(log), lambda: rotate(log)):
        with pytest.raises(UserError, match=rf"log/{name}: is a link; .* move it away$"):
            write()
    assert victim.read_bytes() == before


def test_the_python_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "exposure-log.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(page), "exec"), {})
    assert ids(tmp_path / "exposures") == ["r1"]
