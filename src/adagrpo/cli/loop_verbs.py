"""Verbs of the closed loop: play it on a simulated market, and watch a service for its signs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adagrpo.cli.options import Common, Out, close, verb
from adagrpo.cli.printing import print_values
from adagrpo.stopping import terminable

__all__ = ["loop"]


@verb("loop", "serve")
def loop(
    plan: Annotated[Path, typer.Argument(help="The plan of a loop, a YAML file.")],
    common: Common,
    out: Out = Path("runs/loop"),
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes; each plays whole markets.")] = 1,
) -> None:
    """Close the loop on simulated markets: serve, log, fit the ranker on what was shown, train again; round by round."""
    from adagrpo.pipeline.closed_loop.closing import close_loop

    console = common.console(out)
    try:
        with terminable():
            result = close_loop(plan, out, workers, console)
    finally:
        close(console)
    print_values(result, common.as_json)
