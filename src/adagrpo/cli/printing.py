"""Command output: one JSON object, or lines and tables."""

from __future__ import annotations

import json
from typing import Any

import typer

from adagrpo.cli.lazy import library


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
    table = library.results_table(metrics) if shown is None else library.exposure_table(shown)
    typer.echo(library.to_text(table))
    typer.echo(f"\nreport: {metrics['report']}")
