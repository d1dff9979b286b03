"""The command `watch`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from adagrpo.cli.lazy import library
from adagrpo.cli.options import Command, Common


@Command("watch", "serve", draws=False)
def watch(
    exposures: Annotated[Path, typer.Option("--exposures", help="The exposure log of the service, with its feedback.")],
    common: Common,
    run: Annotated[
        Path | None, typer.Option("--run", help="The run that is served; its ranker predicts the clicks.")
    ] = None,
    arm: Annotated[str | None, typer.Option(help="The lists of one arm of the log; all if not given.")] = None,
    against: Annotated[
        str | None, typer.Option(help="Compare --arm with this arm on the same days, not with a baseline.")
    ] = None,
    since: Annotated[
        int | None, typer.Option(help="The first day, in days since 1970; the log's if not given.")
    ] = None,
    baseline: Annotated[int, typer.Option(min=1, max=365, help="Days of the baseline.")] = 7,
    window: Annotated[int, typer.Option(min=1, max=365, help="Days that are pooled.")] = 3,
    errors: Annotated[
        float, typer.Option(min=1, max=10, help="Standard errors above which a sign is reported.")
    ] = 3.29,
    days: Annotated[bool, typer.Option("--days", help="Print every day.")] = False,
) -> None:
    """Look for signs of reward hacking in a service's log by day: reward up and feedback down, and others."""

    def said(value: float | None, form: str) -> str:
        return library.MISSING if value is None else format(value, form)

    opened = None if run is None else common.open(run)
    result = library.watch(
        exposures, opened, rule=library.SignRule(baseline, window, errors), arm=arm, against=against, since=since
    )
    if common.as_json:
        typer.echo(json.dumps(result, allow_nan=False))
        return
    if days:
        names = ("feedback", "reward", "calibration", "concentration")
        head = ("day", "lists", "clicked", "predicted", "gini", *names, "on")
        rows = [
            (
                *(str(row["day"]), f"{row['lists']:,}", f"{row['clicked']:.4f}", said(row["predicted"], ".4f")),
                *(said(row["gini"], ".3f"), *(said(row[name], "+.1f") for name in names), ", ".join(row["on"])),
            )
            for row in result["days"]
        ]
        typer.echo(library.to_text(library.Table.of(head, rows, 0, 1)) + "\n")
    for sign, day in result["signs"].items():
        typer.echo(f"{sign}: " + ("off" if day is None else f"on from day {day}"))
    for name, share in result.get("invalid", {}).items():
        typer.echo(f"invalid codes, {name}: {share:.1%} of histories")
