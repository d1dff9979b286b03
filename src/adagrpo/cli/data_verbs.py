"""The verb for public sets: data."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from adagrpo.cli.options import Common, verb
from adagrpo.errors import UserError
from adagrpo.stopping import terminable

__all__ = ["public_data"]


@verb("data", "your logs", draws=False)
def public_data(
    common: Common,
    name: Annotated[str | None, typer.Argument(help="The set; without one, all are listed.")] = None,
    more: Annotated[list[Path], typer.Argument(metavar="FILE", help="More downloads, as after --from.")] = [],  # noqa: B006
    downloads: Annotated[
        list[Path], typer.Option("--from", help="Official downloads: files, archives or folders; may be repeated.")
    ] = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option("--out", help="The folder to write.")] = None,
    show: Annotated[bool, typer.Option("--list", help="Only say what there is to know of the set, or of all.")] = False,
    unchecked: Annotated[
        bool, typer.Option("--unchecked", help="Write it though it is not the published version.")
    ] = False,
) -> None:
    """Convert official downloads of public sets into the folders that the recipes read; alone, list the sets."""
    from adagrpo.data.public import SETS, convert, described, listing

    if name is None or show:
        sets = described([] if name is None else [name])
        typer.echo(json.dumps({"sets": sets}) if common.as_json else listing(sets))
        return
    described([name])  # or say that there is no such set
    if out is None:
        raise UserError(f"data {name}: needs --out, the folder to write; `adagrpo data {name} --list` says from what")

    def tell(text: str) -> None:
        if not common.quiet and sys.stderr.isatty():  # elsewhere what is wrong is the only line
            typer.echo(text, err=True)

    with terminable():
        made = convert(name, SETS, [*downloads, *more], out, unchecked=unchecked, tell=tell)
    typer.echo(json.dumps(made) if common.as_json else _said(made))


def _said(made: dict[str, Any]) -> str:
    """What was converted, how it compares with what was published, and the next command."""
    counts = ", ".join(f"{count:,} {what}" for what, count in made["counts"].items())
    lines = [f"{made['set']}: {counts}", *made["notes"], *(f"not as published: {one}" for one in made["problems"])]
    return "\n".join([*lines, f"folder: {made['folder']}", *([f"next: {made['next']}"] if made["next"] else [])])
