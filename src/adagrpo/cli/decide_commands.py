"""The command `decide`."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from adagrpo.cli.lazy import library
from adagrpo.cli.log_commands import is_of_columns, recipe_of_logs, said_columns
from adagrpo.cli.log_roles import (
    Exposures,
    Impressions,
    ItemFile,
    LogRoles,
    Orders,
    RandomExposures,
    RoledFiles,
    UserKeyFile,
    by_role,
)
from adagrpo.cli.options import Command, Common, MaxBadRows, Replace, session
from adagrpo.errors import UserError


@Command("decide", "start", sets="recipe", tracks=True)
def decide(
    common: Common,
    logs: RoledFiles = None,
    run: Annotated[Path | None, typer.Option("--run", help="An existing run, instead of logs.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run directory of the logs.")] = None,
    orders: Orders = None,
    impressions: Impressions = None,
    exposures: Exposures = None,
    random: RandomExposures = None,
    user_key_file: UserKeyFile = None,
    items: ItemFile = None,
    max_bad_rows: MaxBadRows = None,
    reward: Annotated[
        list[str] | None,
        typer.Option("--reward", help="A reward.kind, or module:function; may be repeated."),
    ] = None,
    budget_ms: Annotated[float | None, typer.Option(help="Milliseconds that one list may take.")] = None,
    train: Annotated[bool, typer.Option("--train", help="Let the trained arms of the recipe compete too.")] = False,
    control: Annotated[str, typer.Option(help="The list that users get today, for the plan of an experiment.")] = "sft",
    replace_run: Replace = False,
) -> None:
    """Find the best list that logs and reward can give; print the commands to serve it and to test it on users."""
    if reward:
        common = replace(common, settings=(f"reward={json.dumps(_reward(reward))}", *common.settings))
    if max_bad_rows is not None:
        common = replace(common, settings=(*common.settings, f"data.max_bad_rows={max_bad_rows}"))
    if run is not None:
        if logs or out is not None or any((orders, impressions, exposures, random, user_key_file, items)):
            raise UserError("decide: --run has logs and a folder of its own; give it alone, or files and --out DIR")
        opened = common.open(run)
    else:
        first = next(iter([*(logs or ()), *(orders or ()), *(impressions or ())]), None)
        if first is None:
            raise UserError("decide: give log files and --out DIR, or --run DIR")
        if out is None:
            folder = shlex.quote(f"runs/{first.name.partition('.')[0]}")
            raise UserError(f"decide: give the folder of the run too, a new one such as --out {folder}")
        given = said_columns(common.settings, only=False).logs
        roles = by_role(logs, orders, impressions, exposures, items, user_key_file, random, given=given)
        opened = _made(common, roles, out)
    if not replace_run:
        library.check_logs(opened)
    with session(opened):
        content = opened.decide(budget_ms, train=train, control=control)
    if common.as_json:
        typer.echo(json.dumps(content))
        return
    typer.echo(library.to_text(library.decision_table(content)) + "\n\n" + library.decision_text(content))


def _reward(names: list[str]) -> dict[str, Any]:
    unknown = next((name for name in names if ":" not in name and name not in library.REWARD_KINDS), None)
    if unknown is not None:
        alone = [
            kind
            for kind, options in library.REWARD_KINDS.items()
            if not any(field.is_required() for field in options.model_fields.values())
        ]
        raise UserError(
            f"--reward {unknown}: no kind of reward; give {', '.join(alone)} or a Python function, MODULE:FUNCTION; a"
            " LightGBM file is --reward lightgbm --set reward.model=FILE"
        )
    parts = [{"kind": "callable", "function": name} if ":" in name else {"kind": name} for name in names]
    return parts[0] if len(parts) == 1 else {"kind": "weighted", "members": parts}


def _made(common: Common, roles: LogRoles, out: Path) -> library.Run:
    text, notes = recipe_of_logs(roles, out.name, tuple(filter(is_of_columns, common.settings)))
    content = library.parse_yaml(text)
    content["data"].pop("max_bad_rows", None)  # bad rows end the command, as in `prepare`
    config = library.resolve_config(content, common.overrides(), "decide")
    made = library.Run(out, config, Path(), common.console(out))
    table = config.data.items
    if table is not None:
        unread = library.unread_note(Path(table.path), {table.id_column, *table.text, *table.attributes, *table.groups})
        notes += [] if unread is None else [unread]
    for note in notes:
        made.console.note(note)
    return made
