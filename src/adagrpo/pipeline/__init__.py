"""A recipe, carried out: stages that are skipped when nothing they read has changed."""

from pathlib import Path
from typing import Any

from adagrpo.pipeline.export import export
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.rewards import check_reward
from adagrpo.pipeline.run import Console, Run, Silent
from adagrpo.pipeline.serve import serve
from adagrpo.pipeline.stages.diagnose import diagnose_reward
from adagrpo.pipeline.stages.evaluate import collect, evaluate
from adagrpo.pipeline.stages.exposure_report import collect_exposures, report_exposures
from adagrpo.pipeline.stages.fit_ranker import fit_ranker
from adagrpo.pipeline.stages.fitting import needs_order
from adagrpo.pipeline.stages.post_train import fit_arm
from adagrpo.pipeline.stages.prepare import fit_sft, prepare, simulate_marketplace
from adagrpo.pipeline.stages.ranker_report import report_ranker
from adagrpo.pipeline.stages.tokenize import tokenize
from adagrpo.report import write_report

__all__ = [
    "Console",
    "Run",
    "Silent",
    "collect",
    "diagnose_reward",
    "evaluate",
    "export",
    "finished_arms",
    "fit_and_report",
    "fit_arm",
    "fit_ranker",
    "fit_sft",
    "prepare",
    "report_ranker",
    "run_all",
    "serve",
    "simulate_marketplace",
    "tokenize",
    "train",
    "write_report",
]


def run_all(run: Run) -> tuple[dict[str, Any], Path]:
    """Every stage of a run.

    Returns:
        The content of metrics.json, and the path of the report. In a process that does not lead, which has no part in
        what follows training, nothing yet and the path.
    """
    with run.locked():
        simulate_marketplace(run)
        prepare(run)
        if run.config.without_order:
            return fit_and_report(run)
        tokenize(run)
        fit_sft(run)
        fit_ranker(run)
        train(run)
        run.go_on_alone()
        if not run.processes.leads:
            return {}, run.path("report.html")
        arms = [arm.name for arm in run.config.train.arms]
        evaluate(run, arms)
        report_ranker(run)
        metrics = collect(run, arms)
        return metrics, write_report(run)


def fit_and_report(run: Run) -> tuple[dict[str, Any], Path]:
    """All there is to do with impressions without order: the ranker, its report, metrics.json and the page."""
    fit_ranker(run)
    run.go_on_alone()
    if not run.processes.leads:
        return {}, run.path("report.html")
    report_exposures(run)
    return collect_exposures(run), write_report(run)


def train(run: Run) -> None:
    """Post-train every arm of the configuration."""
    needs_order(run)
    check_reward(Models(RunData(run)))
    for arm in run.config.train.arms:
        fit_arm(run, arm)


def finished_arms(run: Run) -> list[str]:
    """The arms of the configuration that have been trained."""
    trained = set(run.trained())
    return [arm.name for arm in run.config.train.arms if arm.name in trained]
