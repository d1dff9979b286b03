"""The typer program and its common options; heavy modules are imported only when a command runs."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import typer
from typer.core import TyperGroup

import adagrpo
from adagrpo import __version__
from adagrpo.cli.lazy import library
from adagrpo.cli.plugins import load_installed, load_named
from adagrpo.cli.printing import print_plan
from adagrpo.errors import UserError
from adagrpo.stopping import exit_on_interrupt, terminable

Purpose = Literal["start", "your logs", "stages", "answers", "serve", "machine"]

DRY_RUN = typer.Option("--dry-run", help="Print the plan and its cost; write nothing.")
DryRun = Annotated[bool, DRY_RUN]
MaxBadRows = Annotated[
    int | None, typer.Option(min=0, help="How many rows of the logs may be bad; the recipe's, or 0, if not given.")
]
RunDirectory = Annotated[Path, typer.Option("--run", help="The run directory.")]
ARM = (
    "A list of `adagrpo decide`, sft or a trained arm; if not given, what `decide` chose, or without a decision the"
    " policy of the best NDCG@10 on validation among those evaluated."
)
Checkpoint = Annotated[Literal["best", "final"], typer.Option(help="Which checkpoint of it.")]
Precision = Annotated[
    Literal["auto", "float32", "bfloat16"] | None,
    typer.Option(help="What the policy computes in; evaluation.precision of the recipe if not given."),
]
CatalogChoice = Annotated[
    str, typer.Option("--catalog", help="The version of the catalogue: latest, or a number; 0 is the one of training.")
]
ExcludeHistory = Annotated[
    bool | None,
    typer.Option(
        "--exclude-history/--keep-history",
        help="Whether the items of a history may be in its list; as the run was evaluated if not given.",
    ),
]
RewardWeight = Annotated[
    float,
    typer.Option(
        min=0.0,
        help="Re-rank the beam by log-probability + this weight x reward, in units of the reward's spread, as diagnose"
        " advises it.",
    ),
]
AsMeasured = Annotated[
    bool,
    typer.Option("--as-measured", help="The list as it was measured, not refit on all interactions."),
]
Rules = Annotated[
    Path | None, typer.Option("--rules", help="YAML file of the rules of lists; those of the run if not given.")
]
LogFiles = Annotated[list[Path], typer.Argument(help="Log files of the same columns.")]
Out = Annotated[Path, typer.Option("--out", help="Where to write.")]
Replace = Annotated[
    bool, typer.Option("--replace", help="Make all of a run again that was made from other logs, in place.")
]
Elsewhere = Annotated[
    Path | None,
    typer.Option("--out", help="Another run directory, for all that is written; the run itself is only read."),
]

SETTINGS = {
    "recipe": typer.Option("--set", help="Change a key of the recipe: objective.lambda=0.5"),
    "columns": typer.Option(
        "--set", help="Say what a column is, data.columns.user=uid, or which events count, data.keep_events=[click]"
    ),
}
COMMON: dict[str, tuple[Any, Any, Any]] = {  # annotation, option, default
    "track": (
        str | None,
        typer.Option(
            metavar="NAME[:DIR]", help="Log the steps of fits to a tracker, tensorboard or another of Accelerate's."
        ),
        None,
    ),
    "seed": (int | None, typer.Option(help="Seed of everything; the recipe's if not given."), None),
    "as_json": (bool, typer.Option("--json", help="Print one JSON object on stdout."), False),
    "quiet": (bool, typer.Option("--quiet", help="No progress on stderr."), False),
}
PLUGIN = typer.Option(
    metavar="MODULE", help="Import a module that registers gates or objectives; may be given several times."
)
Function = TypeVar("Function", bound=Callable[..., None])


@dataclass(frozen=True)
class Common:
    """Values of the common options."""

    seed: int | None = None
    as_json: bool = False
    quiet: bool = False
    settings: tuple[str, ...] = ()
    track: str | None = None

    def overrides(self, max_bad_rows: int | None = None) -> list[str]:
        """Return the recipe settings as `key=value`."""
        options = {"seed": self.seed, "data.max_bad_rows": max_bad_rows}
        return [*self.settings, *(f"{key}={value}" for key, value in options.items() if value is not None)]

    def with_rules(self, file: Path | None) -> Common:
        """Return the options with a file of rules as a setting."""
        if file is None:
            return self
        rules = library.section.read_section(file, library.rules.RulesConfig, "file of rules", may_be_empty=True)
        content = rules.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return replace(self, settings=(*self.settings, f"rules={json.dumps(content)}"))

    def console(self, directory: Path) -> library.pipeline.Console:
        """Return the progress display, with tracking if set."""
        shown = library.pipeline.Silent() if self.quiet else library.console.StderrConsole()
        return shown if self.track is None else library.tracking.TrackingConsole(shown, self.track, directory)

    def open(self, directory: Path, out: Path | None = None) -> library.pipeline.Run:
        """Open an existing run; see `Run.open`."""
        return library.pipeline.Run.open(directory, self.overrides(), self.console(out or directory), out)


@dataclass(frozen=True)
class Command:
    """Register a function of a module `*_commands` as a command; it takes `common: Common`."""

    name: str
    purpose: Purpose  # section of the help
    sets: Literal["recipe", "columns"] | None = None  # what `--set` changes; None: no `--set`
    plans: bool = False  # makes stages of its argument `run`, and gets `--dry-run`
    tracks: bool = False  # fits models, and gets `--track`
    together: bool = False  # several processes can run it
    draws: bool = True  # uses random numbers; if not, `--seed` is ignored with a message
    instead: str = ""  # option that replaces `--seed`

    def __call__(self, function: Function) -> Function:
        """Register the function."""
        added = {key: option for key, option in COMMON.items() if key != "track" or self.tracks}
        if self.sets is not None:
            added = {"settings": (list[str], SETTINGS[self.sets], [])} | added

        @wraps(function)
        def command(**given: Any) -> None:
            values = {option: given.pop(option) for option in added}
            values["settings"] = tuple(values.get("settings", ()))
            if values["seed"] is not None and not self.draws:
                if not values["quiet"]:
                    why = f"{self.instead} decides what is" if self.instead else "nothing in it is"
                    typer.echo(f"{self.name}: --seed changes nothing, since {why} drawn", err=True)
                values["seed"] = None
            common = Common(**values)
            load_installed()
            with exit_on_interrupt():  # the imports take seconds
                importlib.import_module("adagrpo.cli.library")
            if self.plans and given.pop("dry_run"):
                run = library.pipeline.Run.open(given["run"], common.overrides(), out=given.get("out"))
                verb = library.stage.STRATA if given.get("strata") else self.name
                library.checks.check(run, verb)
                print_plan(run, verb, common.as_json)
            else:
                function(**given, common=common)

        parameters = [
            one for key, one in inspect.signature(function, eval_str=True).parameters.items() if key != "common"
        ]
        plan = {"dry_run": (bool, DRY_RUN, False)} if self.plans else {}
        parameters += [
            inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])
            for option, (kind, info, default) in {**plan, **added}.items()
        ]
        # typer reads both; keyword-only parameters may have defaults in any order
        parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        COMMANDS[self.name] = self
        app.command(name=self.name)(command)
        return function


class CommandGroup(TyperGroup):
    """Commands grouped by purpose."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # types of click or typer's copy
        """Write a section per purpose, one line per command."""
        for purpose in get_args(Purpose):
            commands = [one for one in self.commands.values() if COMMANDS[str(one.name)].purpose == purpose]
            with formatter.section(purpose):
                formatter.write_dl([(str(one.name), one.get_short_help_str(limit=120)) for one in commands])


app = typer.Typer(
    cls=CommandGroup,
    help=adagrpo.__doc__,
    context_settings={"max_content_width": 120},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
COMMANDS: dict[str, Command] = {}


@app.callback(invoke_without_command=True)
def _begin(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version.")] = False,
    plugin: Annotated[list[str] | None, PLUGIN] = None,
) -> None:
    if version:
        typer.echo(f"adagrpo {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        return
    load_named(plugin or [])
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    first = os.environ.get("RANK", "0") == "0"
    together = [command.name for command in COMMANDS.values() if command.together]
    if context.invoked_subcommand in together:  # other commands are refused before processes connect
        load_installed()
        first = library.processes.processes().is_main_process
    if not first:
        silence = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 (until the process ends)
        sys.stdout = silence
        sys.stderr = sys.stderr if os.environ.get("ADAGRPO_TRACEBACK") else silence
    if context.invoked_subcommand not in together:
        raise UserError(
            f"{context.invoked_subcommand}: is for one process; those that several can share are {', '.join(together)}"
        )


@contextmanager
def session(run: library.pipeline.Run) -> Iterator[None]:
    """Lock the run directory, and restore the terminal on exit."""
    try:
        with terminable(), library.directory.locked(run):
            yield
    finally:
        close(run.console)


def close(console: library.pipeline.Console) -> None:
    """Restore the terminal and close the tracker."""
    if isinstance(console, library.console.StderrConsole | library.tracking.TrackingConsole):
        console.close()
