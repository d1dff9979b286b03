"""Command output: one JSON object, or lines, tables and plans."""

from __future__ import annotations

import json
from typing import Any

import typer

from adagrpo.cli.lazy import library

UNTIMED = "; a stage that was made in this run before says how long it takes"


def print_values(values: dict[str, Any], as_json: bool) -> None:
    """Print one line per value."""
    if as_json:
        typer.echo(json.dumps(values))
        return
    for name, value in values.items():
        typer.echo(f"{name}: {json.dumps(value) if isinstance(value, dict) else value}")


def print_metrics(metrics: dict[str, Any], as_json: bool) -> None:
    """Print the main table of metrics.json."""
    if as_json:
        typer.echo(json.dumps(metrics))
        return
    shown = metrics.get("exposures")
    table = library.tables.results_table(metrics) if shown is None else library.run_tables.exposure_table(shown)
    typer.echo(library.tables.to_text(table))
    typer.echo(f"\nreport: {metrics['report']}")


def print_plan(run: library.pipeline.Run, command: str, as_json: bool) -> None:
    """Print what a command would do."""
    content = library.status.plan(run, [command])
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
    lines = [library.tables.to_text(library.tables.Table.of(("stage", "", "steps", "time"), rows, 2)), ""]
    data = content["data"]
    counts = (f"{data[name]:,} {name}" for name in ("users", "items", "interactions", "impressions") if name in data)
    lines.append(f"data: {', '.join(counts)}")
    lines.append(f"time: {_time(content['seconds'])}" + (" in all" if content["seconds"] is not None else UNTIMED))
    return "\n".join(lines)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "not known"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
