"""The command `decide`: from logs, or a run, to the list that is worth serving."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adagrpo.cli.log_commands import recipe_of_logs
from adagrpo.cli.options import Command, Common, session
from adagrpo.errors import UserError

if TYPE_CHECKING:
    from adagrpo.pipeline import Run


@Command("decide", "start", sets="recipe", tracks=True)
def decide(
    common: Common,
    logs: Annotated[list[Path] | None, typer.Argument(help="Log files of the same columns; or --run.")] = None,
    run: Annotated[Path | None, typer.Option("--run", help="A run that is there, in place of logs.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run directory of the logs.")] = None,
    items: Annotated[Path | None, typer.Option(help="A table of the items, with titles or attributes.")] = None,
    budget_ms: Annotated[float | None, typer.Option(help="Milliseconds that one list may take.")] = None,
    train: Annotated[bool, typer.Option("--train", help="Let the trained arms of the recipe compete too.")] = False,
) -> None:
    """Find the best list that the logs and the reward can give, and print the command that serves it."""
    from adagrpo.report.decision import decision_table, decision_text

    opened = _run(common, logs, run, out, items)
    with session(opened):
        content = opened.decide(budget_ms, train=train)
    if common.as_json:
        typer.echo(json.dumps(content))
        return
    typer.echo(decision_table(content) + "\n\n" + decision_text(content))


def _run(common: Common, logs: list[Path] | None, run: Path | None, out: Path | None, items: Path | None) -> Run:
    """The run that is asked about: one that is there, or a new one of logs."""
    from adagrpo.config import resolve_config
    from adagrpo.config.yaml_text import parse_yaml
    from adagrpo.pipeline import Run

    if (run is None) == (not logs):
        raise UserError("decide: give log files and --out DIR, or --run DIR")
    if run is not None:
        if out is not None or items is not None:
            raise UserError("decide: --out and --items belong to log files; --run has its own")
        return common.open(run)
    if out is None:
        raise UserError("decide: log files need --out DIR, the run directory")
    of_columns = tuple(text for text in common.settings if text.startswith(("data.columns.", "data.keep_events")))
    text, notes = recipe_of_logs(logs or [], items, out.name, of_columns)
    made = Run(out, resolve_config(parse_yaml(text), common.overrides(), "decide"), Path(), common.console(out))
    for note in notes:
        made.console.note(note)
    return made
