"""The commands tokenize, sft, ranker, train and evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adagrpo.cli.lazy import library
from adagrpo.cli.options import Command, Common, Elsewhere, RunDirectory, session
from adagrpo.cli.printing import print_metrics, print_values


@Command("tokenize", "stages", sets="recipe", plans=True)
def tokenize(run: RunDirectory, common: Common) -> None:
    """Make Semantic IDs of the items of a run."""
    _carry_out("tokenize", run, common)


@Command("sft", "stages", sets="recipe", plans=True, tracks=True, together=True)
def sft(run: RunDirectory, common: Common) -> None:
    """Train the starting policy."""
    _carry_out("sft", run, common)


@Command("ranker", "stages", sets="recipe", plans=True, tracks=True, together=True)
def ranker(run: RunDirectory, common: Common) -> None:
    """Train the reward model; with impressions without order, write its report too."""
    _carry_out("ranker", run, common)


@Command("train", "stages", sets="recipe", plans=True, tracks=True, together=True)
def train(
    run: RunDirectory,
    common: Common,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Also on a reward that by `diagnose` leaks or has a wrong sign.")
    ] = False,
) -> None:
    """Post-train every arm of the recipe."""
    _carry_out("train", run, common, anyway=anyway)


@Command("evaluate", "stages", sets="recipe", plans=True)
def evaluate(
    run: RunDirectory,
    common: Common,
    out: Elsewhere = None,
    catalog: Annotated[
        str | None,
        typer.Option("--catalog", help="A version of the catalogue, latest or a number; needs --out. Else as trained."),
    ] = None,
) -> None:
    """Evaluate sft and every trained arm on validation and test."""
    opened = common.open(run, out)
    if catalog is not None:
        library.pipeline.evaluate_with(opened, catalog)
    with session(opened):
        opened.evaluate()
    result = opened.results
    if common.as_json:
        print_values(result, as_json=True)
        return
    for split in ("validation", "test"):
        typer.echo(f"{split}\n" + library.tables.to_text(library.tables.results_table(result, split)) + "\n")
    typer.echo(f"metrics: {opened.path('metrics.json')}")


def _carry_out(command: str, directory: Path, common: Common, **options: bool) -> None:
    run = common.open(directory)
    with session(run):
        getattr(run, command)(**options)
    together = library.processes.processes()
    together.part()
    if not together.is_main_process:
        return
    if run.config.without_order:
        print_metrics(run.results | {"report": str(run.path("report.html"))}, common.as_json)
        return
    if command == "tokenize":
        outcome = library.results.catalog_outcome(run)
        table = library.run_tables.catalog_table(outcome)
    elif command == "train":
        fits = library.results.trained_outcomes(run)
        outcome, table = {"fits": fits}, library.run_tables.fits_table(fits)
    else:
        outcome = library.results.fit_outcome(run, command)
        table = library.run_tables.fits_table({command: outcome})
    folder = run.path(command)
    if common.as_json:
        print_values({"stage": command, "folder": str(folder)} | outcome, as_json=True)
    else:
        typer.echo(library.tables.to_text(table) + f"\n\nfolder: {folder}")
    made_anew = any(name.startswith("train/") for name in run.made)
    if command == "train" and made_anew and run.path("report.html").is_file():
        again = f"adagrpo evaluate --run {run.called}` and `adagrpo report --run {run.called}"
        run.console.note(f"note: report.html is of the arms before; `{again}` measure and show these")
    if command == "train" and not run.config.train.arms:
        run.console.note("note: train.arms is empty, so no arm was trained; --set 'train.arms=[nll, distill-tuned]'")
