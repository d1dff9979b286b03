"""Verbs that carry out one stage of an existing run: tokenize, sft, ranker, train, evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adagrpo.cli.options import Common, Elsewhere, RunDirectory, session, verb
from adagrpo.cli.printing import print_metrics, print_values

__all__ = ["evaluate", "ranker", "sft", "tokenize", "train"]


@verb("tokenize", "stages", sets="recipe")
def tokenize(run: RunDirectory, common: Common) -> None:
    """Make Semantic IDs of the items of a run."""
    from adagrpo import pipeline

    opened = common.open(run)
    with session(opened):
        pipeline.tokenize(opened)
    opened.processes.part()
    _print_folder("tokenize", opened.path("tokenize"), common)


@verb("sft", "stages", sets="recipe")
def sft(run: RunDirectory, common: Common) -> None:
    """Train the starting policy."""
    from adagrpo import pipeline

    opened = common.open(run)
    with session(opened):
        pipeline.fit_sft(opened)
    opened.processes.part()
    _print_folder("sft", opened.path("sft"), common)


@verb("ranker", "stages", sets="recipe")
def ranker(run: RunDirectory, common: Common) -> None:
    """Train the reward model; of impressions without order, its report too."""
    from adagrpo import pipeline

    opened = common.open(run)
    with session(opened):
        reported = pipeline.fit_and_report(opened)
    opened.processes.part()
    result: dict[str, Any] = {} if reported is None else reported[0] | {"report": str(reported[1])}
    if "exposures" in result:
        print_metrics(result, common.as_json)
    elif result:
        print_values(result, common.as_json)
    else:
        _print_folder("ranker", opened.path("ranker"), common)


@verb("train", "stages", sets="recipe")
def train(run: RunDirectory, common: Common) -> None:
    """Post-train every arm of the recipe."""
    from adagrpo import pipeline

    opened = common.open(run)
    with session(opened):
        pipeline.train(opened)
    opened.processes.part()
    _print_folder("train", opened.path("train"), common)


@verb("evaluate", "stages", sets="recipe")
def evaluate(run: RunDirectory, common: Common, out: Elsewhere = None) -> None:
    """Evaluate sft and every trained arm on validation and test."""
    from adagrpo import pipeline

    opened = common.open(run, out)
    with session(opened):
        arms = pipeline.finished_arms(opened)
        pipeline.evaluate(opened, arms)
        pipeline.report_ranker(opened)
        result = pipeline.collect(opened, arms)
    print_values(result, common.as_json)


def _print_folder(stage: str, folder: Path, common: Common) -> None:
    print_values({"stage": stage, "folder": str(folder)}, common.as_json)
