"""Verbs that hand a trained policy on: serve and export."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from adagrpo.cli.options import ARM, Checkpoint, Common, RunDirectory, verb
from adagrpo.cli.printing import print_values
from adagrpo.errors import UserError

__all__ = ["export", "serve"]


@verb("export", "serve")
def export(
    run: RunDirectory,
    to: Annotated[Path, typer.Option("--to", help="A new folder.")],
    common: Common,
    arm: Annotated[str | None, typer.Option(help=ARM)] = None,
    checkpoint: Checkpoint = "best",
) -> None:
    """Write a language-model policy as a Hugging Face folder, with catalogue and prefix function for `generate`."""
    from adagrpo import pipeline

    print_values(pipeline.export(common.open(run), to, arm, checkpoint), common.as_json)


@verb("serve", "serve")
def serve(
    run: RunDirectory,
    common: Common,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    arm: Annotated[str | None, typer.Option(help=ARM)] = None,
    checkpoint: Checkpoint = "best",
    reward_weight: Annotated[
        float, typer.Option(min=0.0, help="Re-rank the beam by log-probability + this weight x reward.")
    ] = 0.0,
    exclude_history: Annotated[
        bool | None,
        typer.Option(
            "--exclude-history/--keep-history",
            help="Whether the items of a history may be in its list; as the run was evaluated if not given.",
        ),
    ] = None,
) -> None:
    """Answer requests over HTTP with a trained policy until interrupted: POST /recommend, GET /health."""
    from adagrpo import pipeline

    def ready(about: dict[str, Any]) -> None:
        if common.as_json:
            typer.echo(json.dumps(about))
        elif not common.quiet:
            without = "without" if about["exclude_history"] else "that may hold"
            typer.echo(
                f"{about['name']}, {about['arm']} {about['checkpoint']} ({about['why']}),"
                f" lists {without} items of the history: {about['url']}",
                err=True,
            )
        sys.stdout.flush()

    if not math.isfinite(reward_weight):
        raise UserError(f"--reward-weight: {reward_weight} is no weight; give a finite number of at least 0")
    opened = replace(common, quiet=True).open(run)
    pipeline.serve(
        opened,
        arm,
        checkpoint,
        host=host,
        port=port,
        reward_weight=reward_weight,
        exclude_history=exclude_history,
        ready=ready,
    )
