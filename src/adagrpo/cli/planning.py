"""The output of `--dry-run`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from adagrpo.pipeline import Run
from adagrpo.pipeline.checks import check
from adagrpo.pipeline.dry_run import plan
from adagrpo.report import Table, to_text


def print_plan_of(
    directory: Path, command: str, overrides: Sequence[str], out: Path | None = None, *, as_json: bool
) -> None:
    """Print what a command would do with an existing run, or raise its error."""
    run = Run.open(directory, overrides, out=out)
    check(run, command)
    print_plan(run, command, as_json)


def print_plan(run: Run, command: str, as_json: bool) -> None:
    """Print what a command would do."""
    content = plan(run, [command])
    typer.echo(json.dumps(content) if as_json else plan_text(content))


def plan_text(content: dict[str, Any]) -> str:
    """Return a plan as a table followed by notes."""
    rows = [
        (
            row["stage"],
            row["state"],
            "" if row["steps"] is None else f"{row['steps']:,}",
            "" if row["state"] == "unchanged" else _time(row["seconds"]),
        )
        for row in content["stages"]
    ]
    lines = [to_text(Table.of(("stage", "", "steps", "time"), rows, 2)), ""]
    data = content["data"]
    counts = (f"{data[name]:,} {name}" for name in ("users", "items", "interactions", "impressions") if name in data)
    lines.append(f"data: {', '.join(counts)}")
    lines.append(f"time: {_time(content['seconds'])}" + (" in all" if content["seconds"] is not None else UNTIMED))
    return "\n".join(lines)


UNTIMED = "; a stage that was made in this run before says how long it takes"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "not known"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
