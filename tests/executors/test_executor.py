"""Serial, processes and Ray Data carry out the same tasks, and a worker that is killed loses and repeats nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from adagrpo.errors import UserError
from adagrpo.executors import SERIAL, Executor, each
from adagrpo.executors.local_workers import MOST_ENDS

PROCESSES = Executor("processes", 2)
RAY = Executor("ray", 2)


def numbers(count: int, folder: str = "") -> Iterator[int]:
    for number in range(count):
        if folder:
            (Path(folder) / f"asked-{number}").touch()
        yield number


def squares(folder: str, ends: int = 0) -> Callable[[int], Any]:
    """The square of a task; at task 3 as many processes as are wanted are killed, and task 5 is bad."""
    (Path(folder) / f"made-{os.getpid()}").touch()

    def square(number: int) -> dict[str, int]:
        marks = Path(folder) / f"ends-{number}"
        before = len(marks.read_text()) if marks.exists() else 0
        if number == 3 and before < ends:
            marks.write_text("x" * (before + 1))
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 5 and ends < 0:
            raise {-1: UserError("row 5: bad"), -2: ValueError("odd")}[ends]
        with (Path(folder) / f"done-{number}").open("a") as file:
            file.write("x")
        return {"number": number, "square": number**2}

    return square


@pytest.mark.parametrize("executor", [SERIAL, PROCESSES])
def test_each_task_has_its_result(tmp_path: Path, executor: Executor) -> None:
    found = list(each(partial(numbers, 9), partial(squares, str(tmp_path)), executor))
    if executor == SERIAL:
        assert [one["number"] for one in found] == list(range(9))
    assert {one["number"]: one["square"] for one in found} == {n: n**2 for n in range(9)} and len(found) == 9
    assert len(list(tmp_path.glob("made-*"))) == executor.workers  # once in each worker


def test_a_killed_worker_loses_and_repeats_nothing(tmp_path: Path) -> None:
    found = list(each(partial(numbers, 9), partial(squares, str(tmp_path), 1), PROCESSES))
    assert sorted(one["number"] for one in found) == list(range(9))
    assert (tmp_path / "ends-3").read_text() == "x"
    # what the others had in hand was not begun again either
    assert {path.read_text() for path in tmp_path.glob("done-*")} == {"x"}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")
def test_ray_does_the_same_and_starts_a_killed_worker_again(tmp_path: Path) -> None:
    found = list(each(partial(numbers, 9), partial(squares, str(tmp_path), 1), RAY))
    assert {one["number"]: one["square"] for one in found} == {n: n**2 for n in range(9)} and len(found) == 9
    assert (tmp_path / "ends-3").read_text() == "x"
    with pytest.raises(UserError, match=r"^row 5: bad$"):
        list(each(partial(numbers, 9), partial(squares, str(tmp_path), -1), RAY))


def test_ray_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adagrpo.executors.executor.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'adagrpo\[ray\]'"):
        list(each(partial(numbers, 1), partial(squares, ""), RAY))


def test_a_task_that_ends_every_process_ends_the_work(tmp_path: Path) -> None:
    work = each(partial(numbers, 9), partial(squares, str(tmp_path), 99), PROCESSES)
    with pytest.raises(RuntimeError, match=r"3 workers ended at the same task, the last with status -9 \(killed"):
        list(work)
    assert len((tmp_path / "ends-3").read_text()) == MOST_ENDS


@pytest.mark.parametrize("executor", [SERIAL, PROCESSES])
def test_the_error_of_a_task_is_raised_here(tmp_path: Path, executor: Executor) -> None:
    with pytest.raises(UserError, match=r"^row 5: bad$"):
        list(each(partial(numbers, 9), partial(squares, str(tmp_path), -1), executor))
    if executor == PROCESSES:
        with pytest.raises(RuntimeError, match="ValueError: odd"):
            list(each(partial(numbers, 9), partial(squares, str(tmp_path), -2), executor))


def test_tasks_are_asked_for_as_they_are_needed(tmp_path: Path) -> None:
    found = each(partial(numbers, 50, str(tmp_path)), partial(squares, str(tmp_path)), PROCESSES)
    next(found)
    assert len(list(tmp_path.glob("asked-*"))) == PROCESSES.workers
    found.close()  # type: ignore[attr-defined]
    made = [int(path.name.removeprefix("made-")) for path in tmp_path.glob("made-*")]
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{one}").exists() for one in made) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(Path(f"/proc/{one}").exists() for one in made)
