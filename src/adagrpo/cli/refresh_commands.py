"""The command `refresh`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from adagrpo.cli.lazy import library
from adagrpo.cli.options import Command, Common, RunDirectory, session
from adagrpo.errors import UserError

STAYS = 3  # exit status


@Command("refresh", "serve", draws=False)
def refresh(
    run: RunDirectory,
    common: Common,
    logs: Annotated[
        list[Path] | None, typer.Argument(help="Only the new rows, or longer logs; with the columns of the run's.")
    ] = None,
    back: Annotated[
        bool, typer.Option("--back", help="Serve what was served before the last refresh that took over.")
    ] = False,
) -> None:
    """Take newer rows into the list that decide chose; it is served unless it is worse on the newest, else status 3."""
    if bool(logs) == back:
        raise UserError("refresh: give log files with newer rows, or --back")
    opened = common.open(run)
    with session(opened):
        content = opened.serve_before() if back else opened.refresh(logs or [])
    if common.as_json:
        typer.echo(json.dumps(content))
    elif back:
        names = [f"refresh {content[key]}" if content[key] else "the refit" for key in ("number", "instead_of")]
        typer.echo(f"{names[0]} is served from now on, instead of {names[1]}")
    else:
        typer.echo("\n".join(library.refreshed.sentences(content)))
    if not back and not content["takes_over"]:
        raise typer.Exit(STAYS)
