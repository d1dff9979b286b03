"""Output of commands on stdout: one JSON object, or lines and tables."""

from __future__ import annotations

import json
from typing import Any

import typer


def print_values(values: dict[str, Any], as_json: bool) -> None:
    """A line for each value."""
    if as_json:
        typer.echo(json.dumps(values))
        return
    for name, value in values.items():
        typer.echo(f"{name}: {json.dumps(value) if isinstance(value, dict) else value}")


def print_metrics(metrics: dict[str, Any], as_json: bool) -> None:
    """The main table of metrics.json, and where the page is."""
    from adagrpo.report import exposure_table, results_table, to_text

    if as_json:
        typer.echo(json.dumps(metrics))
        return
    typer.echo(to_text(exposure_table(metrics["exposures"]) if "exposures" in metrics else results_table(metrics)))
    typer.echo(f"\nreport: {metrics['report']}")
