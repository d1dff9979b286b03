"""Seconds and peak memory of every stage as logs and catalogues grow, each stage a process of its own.

    python -m benchmarks.scale_table --work DIR [--cells 1e6:1e4 1e7:1e5] [--memory-gb 20] [--policy hybrid]
    python -m benchmarks.scale_table --work DIR --stages log prepare tokenize sft ranker decide refit fused
    python -m benchmarks.scale_table --page docs/how-to/scale.md        # measures nothing; writes three cells there,
                                                                        # and all into benchmarks/scale_table.md

A cell is a number of interactions and one of items; its log is that of `benchmarks.scale_log`. Fits take a fixed number
of steps, and 1,000 users are evaluated, so that what grows is what a stage does with the size of log and catalogue.
A row is added to the file of results when its stage has ended, and the same command goes on after the last one. A stage
that fails ends its cell, and its row says how. `decide` is the choice among all lists, `refit` the fit of the chosen
one's parts on all interactions; their rows have seconds and memory of each stage inside. `fused` serves a fused list.
The exponents are slopes of log cost over log rows or log items; seconds of them are of processor time, which other work
on the machine disturbs less.

With `--codes drawn` the Semantic IDs of items are distinct numbers, read from a file. What later stages cost can so be
had without the hours that large catalogues are made in; their lists mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from adagrpo.report.tables import MISSING, Alignment, Table, to_markdown
from benchmarks.page import between, machines
from benchmarks.rows import machine
from benchmarks.scale_log import LENGTH, write_codes, write_items, write_parts

__all__ = [
    "CELLS",
    "STAGES",
    "Cell",
    "exponent",
    "is_over",
    "main",
    "measure",
    "on_page",
    "parts_of",
    "tables_of",
    "whole_page",
]

STAGES = (
    *("log", "prepare", "tokenize", "ranker", "sft", "train", "evaluate", "recommend", "serve"),
    *("decide", "refit", "fused"),
)
EVALUATED, ANSWERED, BATCH = 1000, 20, 256
LOOK = 0.2  # seconds between two looks at a process's memory


class Cell(NamedTuple):
    """A size of the log and of the catalogue."""

    rows: int
    items: int

    @classmethod
    def parse(cls, text: str) -> Cell:
        """Of `rows:items`.

        >>> Cell.parse("1e6:1e4")
        Cell(rows=1000000, items=10000)
        """
        rows, items = text.split(":")
        return cls(int(float(rows)), int(float(items)))


# each size of the log with each of the catalogue; the largest is the last
CELLS = tuple(Cell(rows, items) for rows in (10**6, 10**7, 10**8) for items in (10**4, 10**5, 10**6))


SHOWN = (Cell(10**6, 10**4), Cell(10**7, 10**5), Cell(10**8, 10**6))  # in docs/how-to/scale.md


class Cost(NamedTuple):
    """What a process took."""

    seconds: float
    cpu_seconds: float
    peak_gb: float
    status: int
    said: str  # the last line of its errors
    parts: Mapping[str, Mapping[str, float]] | None = None  # stages of one command, with `seconds` and `peak_gb`
    answer_ms: float | None = None  # median of a service's answers


def main() -> None:
    """Measure what is not measured yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("scale_table.jsonl"))
    parser.add_argument("--cells", nargs="*", type=Cell.parse, default=CELLS)
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=STAGES)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--policy", choices=("compact", "hybrid"), default="compact")
    parser.add_argument("--memory-gb", type=float, help="address space of a stage, so that it ends before the machine")
    parser.add_argument("--codes", choices=("made", "drawn"), default="made")
    parser.add_argument("--page", type=Path, help="write the measured rows between the markers of this page")
    options = parser.parse_args()
    if options.page is not None:
        rows = _read(options.out)
        options.page.write_text(on_page(options.page.read_text(encoding="utf-8"), rows), encoding="utf-8")
        options.out.with_suffix(".md").write_text(whole_page(rows), encoding="utf-8")
        return
    if options.work is None:
        parser.error("--work: a folder for logs and runs is needed to measure")
    for cell in options.cells:
        measure(cell, options)
    print(tables_of(_read(options.out)))


def measure(cell: Cell, options: argparse.Namespace) -> None:
    """The stages of a cell that have no row yet; what it takes on disk is removed when all of them have one."""
    folder = options.work / f"{cell.rows}-{cell.items}"
    alike = [row for row in _read(options.out) if (row["rows"], row["items"]) == cell and row["status"] == 0]
    done = [row["stage"] for row in alike if row.get("codes", "made") == options.codes]
    for stage in STAGES:
        if stage in done or stage not in options.stages:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        if stage in ("serve", "fused"):
            cost = _served(folder, options.memory_gb, "sft" if stage == "serve" else "fuse")
        else:
            inside = folder / "run" / ("refit" if stage == "refit" else "") if stage in ("decide", "refit") else None
            cost = _run(_command(stage, cell, folder, options), options.memory_gb, inside)
        row = {"rows": cell.rows, "items": cell.items, "stage": stage}
        row |= {name: value for name, value in cost._asdict().items() if value is not None}
        row |= {"steps": options.steps, "policy": options.policy, "codes": options.codes}
        row |= {"load": os.getloadavg()[1]} | machine()  # of five minutes: what else the machine did
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{cell.rows:.0e}:{cell.items:.0e} {stage}: {cost}", file=sys.stderr)
        if cost.status:
            return
    shutil.rmtree(folder, ignore_errors=True)


def _command(stage: str, cell: Cell, folder: Path, options: argparse.Namespace) -> list[str]:
    """The command line of a stage."""
    if stage == "log":
        code = (
            "import sys; from pathlib import Path; from benchmarks.scale_table import write_log;"
            "write_log(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))"
        )
        return [sys.executable, "-c", code, str(folder), str(cell.rows), str(cell.items)]
    run = folder / "run"
    arguments = {
        "prepare": [
            *map(str, sorted(folder.glob("log-*.parquet"))),
            "--out",
            str(run),
            *_settings(cell, folder, options),
        ],
        "recommend": [
            "--run",
            str(run),
            "--users",
            str(folder / "users.parquet"),
            "--out",
            str(folder / "lists"),
            "--arm",
            "sft",
        ],
        "decide": ["--run", str(run), "--set", "decide.refit=false"],
        "refit": ["--run", str(run), "--set", "decide.refit=true"],
    }
    verb = "decide" if stage == "refit" else stage
    return [sys.executable, "-m", "adagrpo", verb, *arguments.get(stage, ["--run", str(run)]), "--quiet"]


def _settings(cell: Cell, folder: Path, options: argparse.Namespace) -> list[str]:
    """The recipe, as options."""
    drawn = f"{{path: {folder.resolve() / 'codes.parquet'}, column: sid}}"
    epochs = options.steps / -(-max(2, cell.rows // LENGTH) // BATCH)
    fit = f"{{epochs: {epochs:.12f}, batch_size: {BATCH}, validations: 1, validation_users: 200}}"
    recipe = {
        "data.items": f"{{path: {folder.resolve() / 'items.parquet'}, text: [title], attributes: [attributes]}}",
        "data.split.users": EVALUATED,
        "data.keep_unseen_items": "true",
        "tokenizer.vectors": "{attributes: 1.0, cooccurrence: 1.0}",
        "policy.kind": options.policy,
        "ranker.loss": "sampled",
        "ranker.width": 64,
        "ranker.fit": fit,
        "sft": fit,
        "train.arms": "[adagrpo]",
        "train.fit": fit,
        "evaluation.batch_size": 64,
    } | ({"tokenizer.published": drawn} if options.codes == "drawn" else {})
    return [part for key, value in recipe.items() for part in ("--set", f"{key}={value}")]


def write_log(folder: Path, rows: int, items: int) -> None:
    """The log, the item table and drawn codes of a cell, and the users that lists are written for."""
    write_parts(folder, rows=rows, items=items)
    write_items(folder, items)
    write_codes(folder, items)
    users = min(EVALUATED, rows // LENGTH)
    pl.DataFrame({"user_id": np.arange(users)}).write_parquet(folder / "users.parquet")


def _run(command: Sequence[str], memory_gb: float | None, inside: Path | None = None) -> Cost:
    """A command from its start to its end; of the stages that it makes in a run, too, if one is given."""
    started, begun = time.perf_counter(), datetime.now(UTC)
    process = _start(command, memory_gb)
    looks: list[tuple[datetime, float]] = []
    watching = Thread(target=_watch, args=(process, looks), daemon=True)
    if inside is not None:
        watching.start()
    assert process.stderr is not None
    errors = process.stderr.read()
    if inside is None:
        return _ended(process, started, errors)
    watching.join()
    return _ended(process, started, errors)._replace(parts=_parts(inside / "events.jsonl", begun, looks))


def _watch(process: subprocess.Popen[str], looks: list[tuple[datetime, float]]) -> None:
    """Look at the memory of a process, in GB, until it is over."""
    size = os.sysconf("SC_PAGE_SIZE") / 1e9
    while not is_over(process):
        with suppress(OSError, IndexError):
            pages = int(Path(f"/proc/{process.pid}/statm").read_text(encoding="ascii").split()[1])
            looks.append((datetime.now(UTC), pages * size))
        time.sleep(LOOK)


def _parts(events: Path, begun: datetime, looks: Sequence[tuple[datetime, float]]) -> dict[str, Mapping[str, float]]:
    """Seconds and peak memory of the stages that were made since."""
    found: dict[str, Mapping[str, float]] = {}
    for row in _read(events):
        ended = datetime.fromisoformat(row["time"])
        if row["event"] == "end" and ended >= begun.replace(microsecond=0):
            first = ended - timedelta(seconds=row["seconds"])
            peak = max((gb for at, gb in looks if first <= at <= ended + timedelta(seconds=1)), default=0.0)
            found[row["stage"]] = {"seconds": row["seconds"], "peak_gb": round(peak, 2)}
    return found


def _start(command: Sequence[str], memory_gb: float | None) -> subprocess.Popen[str]:
    def bound() -> None:
        if memory_gb is not None:
            resource.setrlimit(resource.RLIMIT_AS, (int(memory_gb * 1e9),) * 2)

    return subprocess.Popen(
        list(command), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=bound
    )


def _ended(process: subprocess.Popen[str], started: float, errors: str) -> Cost:
    """Wait for a process; the peak is its own, not that of those before it."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    lines = errors.strip().splitlines()
    cpu = usage.ru_utime + usage.ru_stime
    said = lines[-1] if lines and process.returncode else ""
    return Cost(time.perf_counter() - started, cpu, usage.ru_maxrss * 1024 / 1e9, process.returncode, said)


def _served(folder: Path, memory_gb: float | None, arm: str) -> Cost:
    """The service from its start to its first answers, and its end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "adagrpo", "serve", "--run", str(folder / "run"), "--arm", arm]
    started = time.perf_counter()
    process = _start([*command, "--port", str(port), "--deadline", "60", "--quiet"], memory_gb)
    history = pl.read_parquet(folder / "items.parquet", n_rows=5)["item_id"].to_list()
    waits = list[float]()
    try:
        while not is_over(process) and not _answers(port, "health"):
            time.sleep(0.1)
        while len(waits) < ANSWERED:
            asked = time.perf_counter()
            if not _answers(port, "recommend", {"history": history, "k": 10}):
                break
            waits.append(1000 * (time.perf_counter() - asked))
    finally:
        os.kill(process.pid, signal.SIGTERM)  # of a process that is over, too: it is not waited for yet
    assert process.stderr is not None
    cost = _ended(process, started, process.stderr.read())
    if cost.status == 0 and len(waits) < ANSWERED:
        return cost._replace(status=1, said=f"{len(waits)} of {ANSWERED} requests were answered")
    return cost._replace(answer_ms=round(statistics.median(waits), 2)) if waits else cost


def is_over(process: subprocess.Popen[str]) -> bool:
    """Whether a process has ended, without taking what it used: that is for `os.wait4`."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _answers(port: int, path: str, body: Mapping[str, Any] | None = None) -> bool:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/{path}", data=data, headers={"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of log cost over log size.

    >>> round(exponent([1, 10, 100], [2, 20, 200]), 3)
    1.0
    """
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def tables_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a line a stage with its cost in each cell and its exponents in rows and items; seconds, then memory."""
    seconds = _table(rows, "cpu_seconds", lambda row: f"{row['cpu_seconds']:.0f} ({row['seconds']:.0f})")
    memory = _table(rows, "peak_gb", lambda row: f"{row['peak_gb']:.2f}")
    text = f"Seconds of processor time, and of the clock in brackets:\n\n{seconds}\n\nPeak memory in GB:\n\n{memory}"
    inside = parts_of(rows)
    return (
        f"{text}\n\nInside `decide` and `refit`, seconds of the clock and peak memory:\n\n{inside}" if inside else text
    )


def parts_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a line a stage inside `decide` and `refit`, its seconds and memory in each cell; empty without any."""
    latest = {(row["stage"], Cell(row["rows"], row["items"])): row["parts"] for row in rows if row.get("parts")}
    cells = sorted({cell for _, cell in latest})
    names = dict.fromkeys((command, part) for (command, _), parts in sorted(latest.items()) for part in parts)
    lines = []
    for command, part in names:
        found = [latest.get((command, cell), {}).get(part) for cell in cells]
        shown = [MISSING if one is None else f"{one['seconds']:.0f} s, {one['peak_gb']:.1f} GB" for one in found]
        lines.append((part if command == "decide" else f"{command}/{part}", *shown))
    right: list[Alignment] = ["right"] * len(cells)
    return to_markdown(Table(("stage", *map(_name, cells)), tuple(lines), ("left", *right))) if lines else ""


def on_page(page: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The page with the cells of `SHOWN` between its markers.

    Raises:
        UserError: a marker is missing, or there is no row.
    """
    shown = [row for row in rows if Cell(row["rows"], row["items"]) in SHOWN]
    return between(page, rows, lambda: _table(shown, "cpu_seconds", _time_and_memory, slopes=False))


def whole_page(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every cell, what was not run, and what it was measured on."""
    title = "# What each stage takes as logs and catalogues grow"
    return "\n\n".join([title, tables_of(rows), _not_run(rows), _measured_on(rows)]) + "\n"


def _time_and_memory(row: Mapping[str, Any]) -> str:
    answers = f", {row['answer_ms']:.0f} ms a list" if "answer_ms" in row else ""
    return f"{row['cpu_seconds']:.0f} s, {row['peak_gb']:.1f} GB{answers}"


def _not_run(rows: Sequence[Mapping[str, Any]]) -> str:
    ended = {(row["rows"], row["items"], row["stage"]) for row in rows if row["status"] == 0}
    lines = []
    for cell in sorted({*CELLS, *(Cell(row["rows"], row["items"]) for row in rows)}):
        missing = [stage for stage in STAGES if (*cell, stage) not in ended]
        if missing:
            lines.append((_name(cell), "everything" if len(missing) == len(STAGES) else ", ".join(missing)))
    table = to_markdown(Table(("cell", "not run"), tuple(lines), ("left", "left")))
    return f"What was not run:\n\n{table}" if lines else "Every stage of every cell was run."


def _measured_on(rows: Sequence[Mapping[str, Any]]) -> str:
    loads = [row["load"] for row in rows if "load" in row]
    load = f"{min(loads):.0f} to {max(loads):.0f}" if loads else MISSING
    lines = [(text, load) for text in machines(rows)]
    table = to_markdown(Table(("machine", "load, processes"), tuple(lines), ("left", "right")))
    return f"What it was measured on:\n\n{table}"


def _table(
    rows: Sequence[Mapping[str, Any]], cost: str, shown: Callable[[Mapping[str, Any]], str], *, slopes: bool = True
) -> str:
    cells = sorted({Cell(row["rows"], row["items"]) for row in rows})
    latest = {(Cell(row["rows"], row["items"]), row["stage"]): row for row in rows}
    lines = []
    for stage in STAGES:
        found = {cell: latest[cell, stage] for cell in cells if (cell, stage) in latest}
        drawn = {cell for cell, row in found.items() if stage == "tokenize" and row.get("codes") == "drawn"}
        measured = {cell: float(row[cost]) for cell, row in found.items() if row["status"] == 0 and cell not in drawn}
        costs = [_cost(found.get(cell), shown) + (", drawn" if cell in drawn else "") for cell in cells]
        lines.append((stage, *costs, *((_slope(measured, 0), _slope(measured, 1)) if slopes else ())))
    header = ("stage", *map(_name, cells), *(("in rows", "in items") if slopes else ()))
    right: list[Alignment] = ["right"] * (len(header) - 1)
    return to_markdown(Table(header, tuple(lines), ("left", *right)))


def _name(cell: Cell) -> str:
    return f"{cell.rows / 1e6:g} M × {cell.items / 1e3:g} K"


def _cost(row: Mapping[str, Any] | None, shown: Callable[[Mapping[str, Any]], str]) -> str:
    if row is None:
        return MISSING
    return shown(row) if row["status"] == 0 else f"failed ({row['status']})"


def _slope(costs: Mapping[Cell, float], axis: int) -> str:
    """Along a line of cells that are equal but for one axis: the one with the most of them, of equals the largest."""
    lines: dict[int, list[Cell]] = {}
    for cell in costs:
        lines.setdefault(cell[1 - axis], []).append(cell)
    line = max(lines.values(), key=lambda line: (len(line), line[0][1 - axis]), default=[])
    if len(line) < 2:
        return MISSING
    return f"{exponent([cell[axis] for cell in line], [costs[cell] for cell in line]):.2f}"


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


if __name__ == "__main__":
    main()
