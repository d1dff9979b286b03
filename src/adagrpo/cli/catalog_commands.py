"""The command `catalog`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from adagrpo.cli.lazy import library
from adagrpo.cli.options import Command, Common, RunDirectory, close, session
from adagrpo.errors import UserError

SHOWN = 20  # printed items per list


@Command("catalog", "serve", draws=False)
def catalog(
    action: Annotated[Literal["list", "diff", "update"], typer.Argument(help="What to do: list, diff or update.")],
    run: RunDirectory,
    common: Common,
    versions: Annotated[
        list[str], typer.Argument(metavar="VERSION", help="For diff: two versions, by number or latest.")
    ] = [],  # noqa: B006 (typer reads the default, nothing changes it)
    items: Annotated[
        Path | None, typer.Option(help="For update: a table of new items, with the columns of data.items.")
    ] = None,
    delist: Annotated[
        list[str], typer.Option(help="For update: items to delist, a file of ids or ids with commas; may be repeated.")
    ] = [],  # noqa: B006
    interactions: Annotated[
        list[Path], typer.Option(help="For update: logs with new items among others; may be repeated.")
    ] = [],  # noqa: B006
    start: Annotated[str, typer.Option("--from", help="For update: the version that is changed.")] = "latest",
) -> None:
    """List or compare versions of the catalogue, or make a new one: add and remove items without training."""
    wanted = 2 if action == "diff" else 0
    if len(versions) != wanted:
        raise UserError(f"catalog {action}: takes {wanted or 'no'} versions, found {len(versions)}")
    if action != "update" and (items or delist or interactions or start != "latest"):
        raise UserError(f"catalog {action}: --items, --delist, --interactions and --from are for update alone")
    opened = common.open(run)
    if action == "list":
        parts = library.staleness.parts_of(opened, measuring=True)
        found_versions = library.pipeline.catalog_versions(opened)
        stale = [one.number > 0 and not parts[one.stage].usable for one in found_versions]
        about = [one.about | {"stale": old} for one, old in zip(found_versions, stale, strict=True)]
        lines = []
        for one in about:
            of = f", from {one['parent']}" if one["parent"] else ", the one of training"
            of += ", stale" if one["stale"] else ""
            lines.append(f"{one['version']}  {one['listed']} of {one['items']} items listed{of}")
        _print({"versions": about}, lines, common.as_json)
    elif action == "diff":
        found = library.pipeline.catalog_diff(*(library.pipeline.open_version(opened, one) for one in versions))
        _print(found, _difference(found), common.as_json)
    else:
        with session(opened):
            made, new = library.pipeline.update_catalog(
                opened, items=items, delist=delist, interactions=interactions, start=start
            )
        parent = library.pipeline.open_version(opened, made.about["parent"] or "0")
        found = library.pipeline.catalog_diff(parent, made) | {"made": new, "version": made.name}
        lines = [f"{made.name} {'made' if new else 'was there already'}", *_difference(found)]
        _print(found, lines, common.as_json)
    close(opened.console)


def _print(content: dict[str, Any], lines: Sequence[str], as_json: bool) -> None:
    typer.echo(json.dumps(content) if as_json else "\n".join(lines))


def _difference(found: dict[str, Any]) -> list[str]:
    lines = [f"{found['before']} to {found['after']}"]
    for kind in ("added", "removed", "delisted", "relisted"):
        names = found[kind]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        lines += [f"{kind} {len(names)}: {', '.join(map(str, names[:SHOWN]))}{more}"] if names else []
    moved = found["moved"]
    lines += [f"moved {len(moved)}"] if moved else []
    lines += [f"  {one['item_id']}: {one['before']} to {one['after']}" for one in moved[:SHOWN]]
    return lines if len(lines) > 1 else [*lines, "no difference"]
