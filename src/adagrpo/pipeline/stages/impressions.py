"""The stages of logs without order (`data.split.kind: impressions`): `prepare`, `ranker` and `ranker/lambdarank`.

A history is the set of a user's clicks; there is no next item, hence no policy.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adagrpo.data.exposures import write_exposures
from adagrpo.pipeline.directory import RunDirectory
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.json_files import read_json
from adagrpo.pipeline.stage import Declaration
from adagrpo.pipeline.stages.exposure_report import examined, exposed
from adagrpo.pipeline.stages.fit_lambdarank import lambdarank
from adagrpo.pipeline.stages.fit_ranker import Examine, Selection, Validate, sequential_ranker
from adagrpo.pipeline.stages.prepare import log_source, note_described, note_ids, prepared, random_files, random_logs
from adagrpo.rewards.sequential import SequentialRanker
from adagrpo.trainer.lambdarank import NegativeSampler, RankingGroups, exposed_groups

HELD_OUT = "held_out.parquet"


def prepare_impressions(run: RunDirectory) -> Declaration:
    """Declare the preparation; impressions are held out at random."""
    source, options = log_source(run), run.config.data

    def build(work: Path) -> None:
        table = source.read_items()
        refuse = source.refusals(table)
        shown = source.read_logs(refuse, ordered=False)
        random = random_logs(run, refuse)
        write_exposures(shown, random, table, work, held_out=options.split.held_out, seed=run.config.seed)
        summary = read_json(work / "summary.json")
        note_described(run, source, summary, summary["items"])
        note_ids(run, work, table)

    return prepared(run, [*source.files, *random_files(run)], build, drawn=True)


def fit_ranker(run: RunDirectory) -> Declaration:
    """Declare the ranker, selected on held-out impressions."""
    return sequential_ranker(run, Selection("auc", "evaluation.batch_size", _examination, [HELD_OUT]))


def fit_trees(run: RunDirectory) -> Declaration:
    """Declare LambdaRank, selected on held-out impressions."""
    return lambdarank(run, _shown_validation, [HELD_OUT])


def _examination(data: RunData, ranker: SequentialRanker, left_out: NDArray[np.bool_]) -> tuple[Validate, Examine]:
    held_out = exposed(data, "validation")
    return lambda: examined(data, ranker, held_out), lambda best: {"validation": examined(data, best, held_out)}


def _shown_validation(data: RunData, sampler: NegativeSampler) -> RankingGroups:
    return exposed_groups(sampler, *exposed(data, "validation"), max_history=data.config.max_history)
