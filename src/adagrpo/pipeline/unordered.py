"""The path of logs without order (`data.split.kind: impressions`): prepare, ranker, report of exposures, page.

Nothing says what came after what, so there is no next item for a policy to learn and no Semantic IDs, policy or arm.
A history is the set of a user's clicks, and a ranker is scored by the order of what was shown, held out at random
(`adagrpo.pipeline.stages.exposure_report`). Which verbs take this path is said in `adagrpo.pipeline.verbs`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adagrpo.data.exposures import write_exposures
from adagrpo.data.logs.interactions import ColumnMapping, Logs, Refusals, read_logs
from adagrpo.pipeline.collected import note_collected
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.run import Run
from adagrpo.pipeline.served_log import publish_first
from adagrpo.pipeline.stages.exposure_report import collect_exposures, examined, exposed, report_exposures
from adagrpo.pipeline.stages.fit_lambdarank import fit_second_ranker
from adagrpo.pipeline.stages.fit_ranker import Examine, Selection, Validate, fit_sequential_ranker
from adagrpo.pipeline.stages.prepare import join_exposures, log_source, note_described, prepare_stage
from adagrpo.report import write_report
from adagrpo.rewards.sequential import SequentialRanker
from adagrpo.trainer.lambdarank import NegativeSampler, RankingGroups, exposed_groups

__all__ = ["fit_and_report", "fit_ranker", "prepare", "run_all"]

HELD_OUT = "held_out.parquet"


def run_all(run: Run) -> tuple[dict[str, Any], Path]:
    """Every stage; see `fit_and_report` for what is returned."""
    with run.locked():
        publish_first(run)
        prepare(run)
        return fit_and_report(run)


def prepare(run: Run) -> None:
    """Logs to impressions: number users and items, hold some out at random."""
    join_exposures(run)
    source, options = log_source(run), run.config.data
    at_random = [run.data / path for path in options.random.logs] if options.random else []

    def build(work: Path) -> None:
        table = source.read_items()
        refuse = source.refusals(table)
        shown = source.read_logs(refuse, ordered=False)
        random = _random_logs(run, at_random, refuse)
        write_exposures(shown, random, table, work, held_out=options.split.held_out, seed=run.config.seed)
        summary = json.loads((work / "summary.json").read_text(encoding="utf-8"))
        note_described(run, source, summary, summary["items"])

    prepare_stage(run, [*source.files, *at_random], build, drawn=True)


def fit_ranker(run: Run) -> None:
    """The reward model, selected by the order of what was shown to the users, and LambdaRank where it is the reward."""
    by_order = Selection("auc", "evaluation.batch_size", _examination, [HELD_OUT])
    fit_sequential_ranker(run, by_order)
    fit_second_ranker(run, _shown_validation, reads=[HELD_OUT])


def fit_and_report(run: Run) -> tuple[dict[str, Any], Path]:
    """The ranker, its report, metrics.json and the page.

    Returns:
        The content of metrics.json, and the path of the page. In a process that does not lead, which has no part in
        what follows the fit, nothing yet and the path.
    """
    fit_ranker(run)
    run.go_on_alone()
    if not run.processes.is_main_process:
        return {}, run.path("report.html")
    report_exposures(run)
    metrics = collect_exposures(run)
    note_collected(run, metrics)
    return metrics, write_report(run)


def _random_logs(run: Run, paths: list[Path], refuse: Refusals) -> Logs | None:
    """What was shown at random, if the recipe names such logs."""
    options = run.config.data.random
    if options is None:
        return None
    return read_logs(
        paths,
        ColumnMapping(**options.columns.model_dump()),
        keep_events=options.keep_events,
        click_rating=options.click_rating,
        ordered=False,
        max_bad_rows=run.config.data.max_bad_rows,
        refuse=refuse,
        max_expansion=run.config.data.max_expansion,
    )


def _examination(data: RunData, ranker: SequentialRanker, left_out: NDArray[np.bool_]) -> tuple[Validate, Examine]:
    """How the ranker is validated while it is fitted, and what is said of the best one; no user is left out here."""
    held_out = exposed(data, "validation")
    return lambda: examined(data, ranker, held_out), lambda best: {"validation": examined(data, best, held_out)}


def _shown_validation(data: RunData, sampler: NegativeSampler) -> RankingGroups:
    """What was shown to each user and held out for validation."""
    return exposed_groups(sampler, *exposed(data, "validation"), max_history=data.config.max_history)
