"""The commands demo and run."""

from __future__ import annotations

import importlib.resources
import json
import textwrap
from pathlib import Path
from typing import Annotated

import typer

from adagrpo.cli.lazy import library
from adagrpo.cli.options import Command, Common, DryRun, MaxBadRows, Out, Replace, close, session
from adagrpo.cli.printing import print_metrics
from adagrpo.errors import UserError
from adagrpo.stopping import terminable


@Command("demo", "start", sets="recipe", tracks=True)
def demo(
    common: Common,
    out: Out = Path("runs/demo"),
    small: Annotated[bool, typer.Option("--small", help="A smaller world, for a quick check of the machine.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Diagnose, train, and decide what to serve under a good and a wrong reward, in a simulated marketplace."""
    name = "demo-small.yaml" if small else "demo.yaml"
    with importlib.resources.as_file(importlib.resources.files("adagrpo") / "recipes" / name) as recipe:
        config = library.load_config(recipe, common.overrides())
    if dry_run:
        _print_demo_plans(library.demo_runs(out, config, common.console(out)), common.as_json)
        return
    console = common.console(out)
    try:
        with terminable():
            result = library.run_demo(out, config, console)
    finally:
        close(console)
    if common.as_json:
        pages = {name: str(page) for name, page in result.pages.items()}
        typer.echo(
            json.dumps(result.metrics | {"report": str(out / "report.html"), "demo": result.rewards, "reports": pages})
        )
        return
    typer.echo(library.to_text(library.contenders_table(result.rewards)))
    typer.echo("\n" + "\n".join(library.trial_sentences(result.rewards)) + "\n")
    for name, page in result.pages.items():
        typer.echo(f"report, {name}: {page}")
    typer.echo(f"next: {next(iter(result.rewards['decisions'].values()))['serve']}")


@Command("run", "start", sets="recipe", tracks=True, together=True)
def run_recipe(
    recipe: Annotated[Path, typer.Argument(help="A recipe, see recipes/.")],
    out: Out,
    common: Common,
    data: Annotated[Path, typer.Option(help="The folder that the recipe's relative paths are in.")] = Path(),
    dry_run: DryRun = False,
    max_bad_rows: MaxBadRows = None,
    replace: Replace = False,
) -> None:
    """Run a recipe; the same command continues an interrupted run."""
    config = library.load_config(recipe, common.overrides(max_bad_rows))
    if not data.is_dir():
        raise UserError(f"{data}: no such folder (--data)")
    run = library.Run(out, config, data, common.console(out), recipe.parent)
    if dry_run:
        _print_recipe_and_plan(run, common)
        return
    if not replace:
        library.check_logs(run)
    _carry_out(run, common)


def _print_demo_plans(runs: dict[str, library.Run], as_json: bool) -> None:
    rest = ("ranker", "train", "evaluate", "diagnose")
    first = next(iter(runs))
    plans = {
        name: library.plan(run, (*library.RUN, "diagnose") if name == first else rest) for name, run in runs.items()
    }
    texts = [f"reward: {name}\n\n{library.plan_text(content)}" for name, content in plans.items()]
    typer.echo(json.dumps(plans) if as_json else "\n\n".join(texts))


def _print_recipe_and_plan(run: library.Run, common: Common) -> None:
    content, arms = library.dump_config(run.config), run.config.settings_of_arms()
    planned = library.plan(run)
    if common.as_json:
        typer.echo(json.dumps(content | {"arms": arms, "plan": planned}))
        return
    comment = library.dump_yaml({"arms": arms}) + "\n" + library.plan_text(planned)
    text = library.dump_yaml(content) + textwrap.indent(comment, "# ", lambda line: True)
    typer.echo(text.rstrip())


def _carry_out(run: library.Run, common: Common) -> None:
    with session(run):
        run.complete()
    run.processes.part()
    if run.processes.is_main_process:
        print_metrics(run.results | {"report": str(run.path("report.html"))}, common.as_json)
