"""Verbs that carry out one stage of an existing run: tokenize, sft, ranker, train, evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adagrpo.cli.options import Common, DryRun, Elsewhere, RunDirectory, session, verb
from adagrpo.cli.planning import print_plan_of
from adagrpo.cli.printing import print_metrics, print_values

if TYPE_CHECKING:
    from adagrpo.report import Table

__all__ = ["evaluate", "ranker", "sft", "tokenize", "train"]


@verb("tokenize", "stages", sets="recipe")
def tokenize(run: RunDirectory, common: Common, dry_run: DryRun = False) -> None:
    """Make Semantic IDs of the items of a run."""
    from adagrpo.pipeline.outcomes import catalog_outcome
    from adagrpo.report import catalog_table

    if dry_run:
        print_plan_of(run, "tokenize", common)
        return
    opened = common.open(run)
    with session(opened):
        opened.tokenize()
    opened.processes.part()
    if opened.processes.is_main_process:
        outcome = catalog_outcome(opened)
        _print_outcome("tokenize", opened.path("tokenize"), outcome, catalog_table(outcome), common)


@verb("sft", "stages", sets="recipe", tracks=True)
def sft(run: RunDirectory, common: Common, dry_run: DryRun = False) -> None:
    """Train the starting policy."""
    from adagrpo.pipeline.outcomes import fit_outcome
    from adagrpo.report import fits_table

    if dry_run:
        print_plan_of(run, "sft", common)
        return
    opened = common.open(run)
    with session(opened):
        opened.sft()
    opened.processes.part()
    if opened.processes.is_main_process:
        outcome = fit_outcome(opened, "sft")
        _print_outcome("sft", opened.path("sft"), outcome, fits_table({"sft": outcome}), common)


@verb("ranker", "stages", sets="recipe", tracks=True)
def ranker(run: RunDirectory, common: Common, dry_run: DryRun = False) -> None:
    """Train the reward model; of impressions without order, its report too."""
    from adagrpo.pipeline.outcomes import fit_outcome
    from adagrpo.report import fits_table

    if dry_run:
        print_plan_of(run, "ranker", common)
        return
    opened = common.open(run)
    with session(opened):
        opened.ranker()
    opened.processes.part()
    if not opened.processes.is_main_process:
        return
    if opened.config.without_order:
        print_metrics(opened.results | {"report": str(opened.path("report.html"))}, common.as_json)
    else:
        outcome = fit_outcome(opened, "ranker")
        _print_outcome("ranker", opened.path("ranker"), outcome, fits_table({"ranker": outcome}), common)


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
    from adagrpo.pipeline.outcomes import trained_outcomes
    from adagrpo.report import fits_table

    if dry_run:
        print_plan_of(run, "train", common)
        return
    opened = common.open(run)
    with session(opened):
        opened.train(anyway=anyway)
        if not opened.config.train.arms:
            opened.console.note(
                "note: train.arms is empty, so no arm was trained; --set 'train.arms=[nll, distill-tuned]'"
            )
    opened.processes.part()
    if opened.processes.is_main_process:
        outcomes = trained_outcomes(opened)
        _print_outcome("train", opened.path("train"), {"fits": outcomes}, fits_table(outcomes), common)


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


def _print_outcome(stage: str, folder: Path, outcome: dict[str, Any], table: Table, common: Common) -> None:
    """Where a stage is and what came out of it."""
    from adagrpo.report import to_text

    if common.as_json:
        print_values({"stage": stage, "folder": str(folder)} | outcome, as_json=True)
        return
    typer.echo(to_text(table) + f"\n\nfolder: {folder}")
