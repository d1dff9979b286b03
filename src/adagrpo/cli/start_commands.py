"""Commands that carry out a whole pipeline: demo and run."""

from __future__ import annotations

import importlib.resources
import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adagrpo.cli.options import Command, Common, DryRun, MaxBadRows, Out, close, session
from adagrpo.cli.planning import plan_text
from adagrpo.cli.printing import print_metrics
from adagrpo.errors import UserError
from adagrpo.stopping import terminable

if TYPE_CHECKING:
    from adagrpo.pipeline import Run

__all__ = ["demo", "run_recipe"]


@Command("demo", "start", sets="recipe", tracks=True)
def demo(
    common: Common,
    out: Out = Path("runs/demo"),
    small: Annotated[bool, typer.Option("--small", help="A smaller world, for a quick check of the machine.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Diagnose, train, and decide what to serve under a good and a wrong reward, in a simulated marketplace."""
    from adagrpo.config import load_config
    from adagrpo.pipeline.demo import demo_runs, run_demo
    from adagrpo.report import to_text
    from adagrpo.report.reward_trial import contenders_table, trial_sentences

    name = "demo-small.yaml" if small else "demo.yaml"
    with importlib.resources.as_file(importlib.resources.files("adagrpo") / "recipes" / name) as recipe:
        config = load_config(recipe, common.overrides())
    if dry_run:
        _print_demo_plans(demo_runs(out, config, common.console(out)), common.as_json)
        return
    console = common.console(out)
    try:
        with terminable():
            result = run_demo(out, config, console)
    finally:
        close(console)
    if common.as_json:
        pages = {name: str(page) for name, page in result.pages.items()}
        typer.echo(
            json.dumps(result.metrics | {"report": str(out / "report.html"), "demo": result.rewards, "reports": pages})
        )
        return
    typer.echo(to_text(contenders_table(result.rewards)))
    typer.echo("\n" + "\n".join(trial_sentences(result.rewards)) + "\n")
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
) -> None:
    """Carry out a recipe; the same command continues an interrupted run."""
    from adagrpo.config import load_config
    from adagrpo.pipeline import Run

    config = load_config(recipe, common.overrides(max_bad_rows))
    if not data.is_dir():
        raise UserError(f"{data}: no such folder (--data)")
    run = Run(out, config, data, common.console(out), recipe.parent)
    if dry_run:
        _print_recipe_and_plan(run, common)
        return
    _carry_out(run, common)


def _print_demo_plans(runs: dict[str, Run], as_json: bool) -> None:
    """Print what the demo would do under each reward; the second run reads what is the same from the first."""
    from adagrpo.pipeline.dry_run import plan
    from adagrpo.pipeline.stage_table import RUN

    rest = ("ranker", "train", "evaluate", "diagnose")
    first = next(iter(runs))
    plans = {name: plan(run, (*RUN, "diagnose") if name == first else rest) for name, run in runs.items()}
    texts = [f"reward: {name}\n\n{plan_text(content)}" for name, content in plans.items()]
    typer.echo(json.dumps(plans) if as_json else "\n\n".join(texts))


def _print_recipe_and_plan(run: Run, common: Common) -> None:
    """The recipe resolved; as comments, so that it is a recipe again, what each arm is trained by, and the plan."""
    from adagrpo.config import dump_config
    from adagrpo.config.yaml_text import dump_yaml
    from adagrpo.pipeline.dry_run import plan

    content, arms = dump_config(run.config), run.config.settings_of_arms()
    planned = plan(run)
    if common.as_json:
        typer.echo(json.dumps(content | {"arms": arms, "plan": planned}))
        return
    comment = dump_yaml({"arms": arms}) + "\n" + plan_text(planned)
    text = dump_yaml(content) + textwrap.indent(comment, "# ", lambda line: True)
    typer.echo(text.rstrip())


def _carry_out(run: Run, common: Common) -> None:
    with session(run):
        run.complete()
    run.processes.part()
    if run.processes.is_main_process:
        print_metrics(run.results | {"report": str(run.path("report.html"))}, common.as_json)
