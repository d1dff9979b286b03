"""Verbs that carry out a whole pipeline: demo and run."""

from __future__ import annotations

import importlib.resources
import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adagrpo.cli.options import Common, MaxBadRows, Out, session, verb
from adagrpo.cli.printing import print_metrics
from adagrpo.errors import UserError

if TYPE_CHECKING:
    from adagrpo.pipeline import Run

__all__ = ["demo", "run_recipe"]


@verb("demo", "start", sets="recipe")
def demo(
    common: Common,
    out: Out = Path("runs/demo"),
    small: Annotated[bool, typer.Option("--small", help="A smaller world, for a quick check of the machine.")] = False,
) -> None:
    """Diagnose, train and measure under a good and a wrong reward, in a simulated marketplace."""
    from adagrpo.config import load_config
    from adagrpo.pipeline.demo import run_demo
    from adagrpo.report import to_text
    from adagrpo.report.reward_trial import trial_sentences, trial_table

    name = "demo-small.yaml" if small else "demo.yaml"
    with importlib.resources.as_file(importlib.resources.files("adagrpo") / "recipes" / name) as recipe:
        config = load_config(recipe, common.overrides())
    result = run_demo(out, config, common.console())
    if common.as_json:
        pages = {name: str(page) for name, page in result.pages.items()}
        typer.echo(
            json.dumps(result.metrics | {"report": str(out / "report.html"), "demo": result.rewards, "reports": pages})
        )
        return
    typer.echo(to_text(trial_table(result.rewards)))
    typer.echo("\n" + "\n".join(trial_sentences(result.rewards)) + "\n")
    for name, page in result.pages.items():
        typer.echo(f"report, {name}: {page}")


@verb("run", "start", sets="recipe")
def run_recipe(
    recipe: Annotated[Path, typer.Argument(help="A recipe, see recipes/.")],
    out: Out,
    common: Common,
    data: Annotated[Path, typer.Option(help="The folder that the recipe's relative paths are in.")] = Path(),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the recipe, print it resolved, do nothing.")
    ] = False,
    max_bad_rows: MaxBadRows = None,
) -> None:
    """Carry out a recipe; the same command continues an interrupted run."""
    import yaml

    from adagrpo.config import dump_config, load_config
    from adagrpo.pipeline import Run

    config = load_config(recipe, common.overrides(max_bad_rows))
    if not data.is_dir():
        raise UserError(f"{data}: no such folder (--data)")
    if dry_run:
        content, arms = dump_config(config), config.settings_of_arms()
        # as a comment, so that what is printed is a recipe again
        comment = textwrap.indent(yaml.safe_dump({"arms": arms}, sort_keys=False), "# ")
        text = yaml.safe_dump(content, sort_keys=False) + comment
        typer.echo(json.dumps(content | {"arms": arms}) if common.as_json else text.rstrip())
        return
    _carry_out(Run(out, config, data, common.console(), recipe.parent), common)


def _carry_out(run: Run, common: Common) -> None:
    from adagrpo import pipeline

    with session(run):
        metrics, page = pipeline.run_all(run)
    run.processes.part()
    if run.processes.is_main_process:
        print_metrics(metrics | {"report": str(page)}, common.as_json)
