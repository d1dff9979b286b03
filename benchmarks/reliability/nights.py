"""Row 34: a list that is refreshed every night, by commands that are killed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.reliability.findings import Finding
from benchmarks.reliability.kills import succeed
from benchmarks.reliability.processes import Server, server

__all__ = ["nights"]

DAY, BEGIN = 86_400, 1_699_920_000  # seconds; a midnight
USERS, ITEMS, KNOWN = 200, 60, 8  # days that `decide` sees
SETTINGS = ("sft.epochs=4", "sft.checkpoint_seconds=0", "ranker.fit.epochs=4", "threads=1")
Row = tuple[int, int, int]  # user, item, time


def rows_of(days: int) -> list[Row]:
    """Users who mostly walk along a ring of items, one a day."""
    draw, rows = np.random.default_rng(0), list[Row]()
    for user in range(USERS):
        steps = np.where(draw.random(days) < 0.2, draw.integers(0, ITEMS, days), 1)
        walk = (int(draw.integers(ITEMS)) + steps.cumsum()) % ITEMS
        rows += [(user, int(item), BEGIN + DAY * day + user) for day, item in enumerate(walk)]
    return rows


def write(path: Path, rows: Sequence[Row]) -> Path:
    """Write rows as CSV; returns the path."""
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(path)
    return path


def lists(processes: Server, run: Path, users: Path) -> pl.DataFrame:
    """What `adagrpo recommend` answers."""
    out = run.parent / f"{run.name}-lists"
    shutil.rmtree(out, ignore_errors=True)
    succeed(processes, ["recommend", "--run", str(run), "--users", str(users), "--out", str(out), "--quiet"])
    return pl.read_parquet(out / "part-00000.parquet")


def weights(run: Path, night: int) -> dict[str, str]:
    """The sha256 of the weights of a refresh."""
    folder = run / "refresh" / f"{night:04d}" / "list"
    files = sorted(folder.glob("*/best/model.safetensors"))
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def nights(work: Path, count: int = 7, times: int = 3, seed: int = 0) -> Finding:
    """Kill each night's refresh at random times, and finish it; then give rows that must change nothing."""
    draw, every = np.random.default_rng(seed), rows_of(KNOWN + count)
    killed = kept = equal = taken = 0
    users = work / "users.parquet"
    with server(work / "server") as processes:
        histories = [draw.integers(0, ITEMS, 5).tolist() for _ in range(50)]
        pl.DataFrame({"user_id": range(50), "history": histories}).write_parquet(users)
        log = write(work / "log.csv", [row for row in every if row[2] < BEGIN + DAY * KNOWN])
        settings = [part for setting in SETTINGS for part in ("--set", setting)]
        succeed(processes, ["decide", str(log), "--out", str(work / "run"), "--quiet", *settings])
        shutil.copytree(work / "run", work / "twin")  # whose nights are not killed
        run = work / "run"
        for night in range(1, count + 1):
            day = BEGIN + DAY * (KNOWN + night - 1)
            new = write(work / f"night-{night}.csv", [row for row in every if day <= row[2] < day + DAY])
            seconds = succeed(processes, ["refresh", "--run", str(work / "twin"), str(new), "--quiet"])
            command, before = ["refresh", "--run", str(run), str(new), "--quiet"], lists(processes, run, users)
            tries = 0
            while tries < times:
                pid = processes.start(command)
                time.sleep(float(draw.uniform(0.05, 0.8)) * seconds / (1 + tries))  # it goes on where it was
                with suppress(ProcessLookupError):  # it has ended
                    os.kill(pid, signal.SIGKILL)
                status, _ = processes.wait()
                served = run / "refresh" / "served.json"
                last = json.loads(served.read_text(encoding="utf-8"))["last"] if served.is_file() else 0
                if status != -signal.SIGKILL or last == night:
                    break  # it had ended, or had nothing left to do but to say so
                tries += 1
                kept += lists(processes, run, users).equals(before)
            killed += tries
            if tries == times:
                succeed(processes, command)
            taken += not lists(processes, run, users).equals(before)
            same = lists(processes, run, users).equals(lists(processes, work / "twin", users))
            equal += same and weights(run, night) == weights(work / "twin", night)
        before, refused = lists(processes, run, users), 0
        broken = work / "broken.csv"
        broken.write_text("user_id,item_id,timestamp\n1,2\n3,4,yesterday\n", encoding="utf-8")
        for rows in (work / "night-1.csv", broken):
            status, said = processes.run(["refresh", "--run", str(run), str(rows), "--quiet"])
            refused += status == 2 and rows.name in said and lists(processes, run, users).equals(before)
    figure = (
        f"{count} nights, {killed} refreshes killed: {kept} times the list before was served; {taken} of {count} new"
        f" lists took over, {equal} with the weights and lists of nights that nobody killed; older rows and a broken"
        f" log are refused in one line and change nothing {refused} of 2 times"
    )
    holds = killed == kept and killed >= count * (times - 1) and equal == taken == count and refused == 2
    return Finding(34, figure, holds)
