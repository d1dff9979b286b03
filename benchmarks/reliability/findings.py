"""What a check has found, and the table of docs/reliability.md that is made of it."""

from __future__ import annotations

import json
import platform
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adagrpo.storage.writing import write_file

__all__ = ["ROWS", "Finding", "record", "table"]

BEGIN, END = "<!-- figures: written by python -m benchmarks.reliability -->", "<!-- end of figures -->"

# what is promised, by the number of its row
ROWS = {
    1: "kill -9 at random points of a run, some inside a save; the same command again",
    2: "the disk is full during a save",
    3: "resumption in the middle of an epoch and of an accumulation window",
    4: "accumulation 1 x 8 against 8 x 1; one process against two",
    5: "NaN or infinity in rewards, logits and gradients",
    6: "bad rows of twelve kinds and more among 100,000, in CSV, JSONL and Parquet",
    7: "malicious files, YAML tags, names and model folders",
    8: "truncated files of a run, before every verb that reads them",
    9: "lists that are generated; brute force on small catalogues",
    10: "malformed requests to the server",
    11: "32 clients at 70 % of capacity; four times as many",
    12: "SIGTERM under load, and kill -9",
    13: "a model is swapped under load",
    14: "a token is set",
    15: "A/A experiments that are looked at while they run",
    16: "folders of somebody else's files, or of the program's own of another kind, given to every verb, also killed",
    17: "one bit of any file of a run is flipped, before every verb that reads it",
    18: "inputs that explode: compressed files, long lines, deep nesting, malformed model texts",
    19: "stages that are out of date, in every order",
    20: "the verdict of diagnose over seeds, worlds and rewards",
    21: "a history longer than what the policy sees, masked in evaluation, serving and an exported folder",
    22: "a run on a file system that cannot be written",
    23: "part of the catalogue is eligible, by masks that requests share or not; items left out beside",
    25: "exposure logs with rows of another plan or user key, feedback outside its window, wrong types, edited SQLite",
    26: "hostile clients: what is sent without end, silent and slow sockets, smuggled requests, foreign names",
    0: "killed runs carried on, turn after turn, in one process",  # the soak, a script of its own
}
ELSEWHERE = {
    20: "measured as a study: [verdict](../research/verdict/README.md)",
    25: "tested, not measured at length: `tests/experiments/test_ab.py`, `tests/serving/test_exposure_store.py` and"
    " `test_exposure_collect.py`; refused or counted with file and row, and no verdict rests on such rows",
}


@dataclass(frozen=True)
class Finding:
    """A figure for a row."""

    row: int
    figure: str  # what was found, with its numbers
    passes: bool


def record(path: Path, name: str, found: Finding, carried_out: str | None = None) -> None:
    """Put a finding into a JSON file, in the place of an earlier one of the same check."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    content[name] = asdict(found) | {
        "command": carried_out or f"python -m benchmarks.reliability --only {name}",
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit or None,
        "machine": f"{platform.machine()}, torch {version('torch')}, python {platform.python_version()}",
    }
    write_file(path, json.dumps(dict(sorted(content.items())), indent=1) + "\n")


def table(results: Path, page: Path) -> None:
    """Write the figures of a JSON file into a page, between its two marks; a row without a figure says so."""
    content = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {}
    lines = ["| # | what happens | found | holds | command | date |", "|---|---|---|---|---|---|"]
    for row, title in ROWS.items():
        result = [entry for entry in content.values() if entry["row"] == row]
        if not result:
            found = ELSEWHERE.get(row, "open: not built or not measured yet")
            lines.append(f"| {row or 'soak'} | {title} | {found} | – | – | – |")
        for entry in result:
            holds = "yes" if entry["passes"] else "**no**"
            lines.append(
                f"| {row or 'soak'} | {title} | {entry['figure']} | {holds} | `{entry['command']}` | {entry['date']} |"
            )
    text = page.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    write_file(page, f"{head}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{rest.split(END)[1]}")
