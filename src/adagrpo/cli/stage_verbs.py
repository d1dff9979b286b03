"""Verbs that carry out one stage of an existing run: tokenize, sft, ranker, train, evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adagrpo.cli.options import Common, DryRun, Elsewhere, RunDirectory, session, verb
from adagrpo.cli.planning import print_plan_of
from adagrpo.cli.printing import print_metrics, print_values

if TYPE_CHECKING:
    from adagrpo.pipeline import Run

__all__ = ["evaluate", "ranker", "sft", "tokenize", "train"]


@verb("tokenize", "stages", sets="recipe")
def tokenize(run: RunDirectory, common: Common, dry_run: DryRun = False) -> None:
    """Make Semantic IDs of the items of a run."""
    _carry_out("tokenize", run, common, dry_run)


@verb("sft", "stages", sets="recipe", tracks=True)
def sft(run: RunDirectory, common: Common, dry_run: DryRun = False) -> None:
    """Train the starting policy."""
    _carry_out("sft", run, common, dry_run)


@verb("ranker", "stages", sets="recipe", tracks=True)
def ranker(run: RunDirectory, common: Common, dry_run: DryRun = False) -> None:
    """Train the reward model; of impressions without order, its report too."""
    _carry_out("ranker", run, common, dry_run)


@verb("train", "stages", sets="recipe", tracks=True)
def train(
    run: RunDirectory,
    common: Common,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Also on a reward that `diagnose` does not recommend for training.")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Post-train every arm of the recipe."""
    _carry_out("train", run, common, dry_run, anyway=anyway)


@verb("evaluate", "stages", sets="recipe")
def evaluate(
    run: RunDirectory,
    common: Common,
    out: Elsewhere = None,
    catalog: Annotated[
        str | None,
        typer.Option("--catalog", help="A version of the catalogue, latest or a number; needs --out. Else as trained."),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Evaluate sft and every trained arm on validation and test."""
    from adagrpo import pipeline
    from adagrpo.report import results_table, to_text

    if dry_run:
        print_plan_of(run, "evaluate", common, out)
        return
    opened = common.open(run, out)
    if catalog is not None:
        pipeline.evaluate_with(opened, catalog)
    with session(opened):
        opened.evaluate()
    result = opened.results
    if common.as_json:
        print_values(result, as_json=True)
        return
    for split in ("validation", "test"):
        typer.echo(f"{split}\n" + to_text(results_table(result, split)) + "\n")
    typer.echo(f"metrics: {opened.path('metrics.json')}")


def _carry_out(command: str, directory: Path, common: Common, dry_run: bool, **options: bool) -> None:
    """Carry out a command that makes one kind of stage, and print what came of it."""
    if dry_run:
        print_plan_of(directory, command, common)
        return
    run = common.open(directory)
    with session(run):
        getattr(run, command)(**options)
    run.processes.part()
    if run.processes.is_main_process:
        _print_outcome(run, command, common)


def _print_outcome(run: Run, command: str, common: Common) -> None:
    from adagrpo.pipeline.outcomes import catalog_outcome, fit_outcome, trained_outcomes
    from adagrpo.report import catalog_table, fits_table, to_text

    if run.config.without_order:
        print_metrics(run.results | {"report": str(run.path("report.html"))}, common.as_json)
        return
    if command == "tokenize":
        outcome = catalog_outcome(run)
        table = catalog_table(outcome)
    elif command == "train":
        fits = trained_outcomes(run)
        outcome, table = {"fits": fits}, fits_table(fits)
    else:
        outcome = fit_outcome(run, command)
        table = fits_table({command: outcome})
    folder = run.path(command)
    if common.as_json:
        print_values({"stage": command, "folder": str(folder)} | outcome, as_json=True)
    else:
        typer.echo(to_text(table) + f"\n\nfolder: {folder}")
    if command == "train" and not run.config.train.arms:
        run.console.note("note: train.arms is empty, so no arm was trained; --set 'train.arms=[nll, distill-tuned]'")
