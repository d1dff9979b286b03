"""The stages `evaluate/<list>`: lists that combine a policy with other parts, measured as they are served.

The policy's own evaluation has the free beam, which no order changes, the stage `fuse` cross-fitted validation ranks.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from adagrpo.evaluation.predictions import ranks_in
from adagrpo.lists.names import FUSE, START, parse_list
from adagrpo.metrics import RankedLists, measure, measured
from adagrpo.pipeline.choose_checkpoint import evaluation_of
from adagrpo.pipeline.directory import RunDirectory, model_of, weights_of
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import CatalogVersion, RunData
from adagrpo.pipeline.json_files import read_json, write_json
from adagrpo.pipeline.list_makers import ListMaker, Lists, lists_of
from adagrpo.pipeline.stage import Declaration
from adagrpo.pipeline.stages.evaluate import copy_equal, write_lists
from adagrpo.pipeline.stages.fitting import DECODING, progress
from adagrpo.pipeline.stages.fuse import VALIDATION, read_ranks, validation_cases, write_ranks
from adagrpo.types import Cases

WITHOUT_POLICY = ("evaluation", "max_history")  # settings that determine the lists of sources
FREE = "free.parquet"
FREE_METRICS = ("hallucination", "invalid")


def evaluate_list(run: RunDirectory, name: str) -> Declaration:
    """Declare the evaluation of a list, see `adagrpo.lists.names`."""
    data, called = RunData(run, CatalogVersion(run, run.catalog)), parse_list(name)
    models = Models(data)
    maker, arm = ListMaker(models), called.policy or START
    weights = run.path(*weights_of(arm))
    base = None if called.policy is None else run.path(*evaluation_of(arm, "best"))
    ranked = None if called.policy is None else run.path(FUSE, arm, VALIDATION)
    reads = [*data.training_files, "prepare:test.parquet", *data.catalog_files, *data.truth_files]
    reads += [] if ranked is None else [f"{FUSE}/{arm}:{VALIDATION}"]
    reads += maker.files(called)
    if base is not None:
        evaluated = "/".join(evaluation_of(arm, "best"))
        reads += [model_of(arm), f"{evaluated}:{FREE}", f"{evaluated}:metrics.json"]
    seed = ["seed"] if ranked is None else []  # samples the validation cases
    reward = models.reward_reads if maker.asks_reward(called) else ()

    def build(work: Path) -> None:
        if copy_equal(run, declared, work):
            return
        served, cases = maker.recommender(called, weights), data.measured_cases("test")
        lists = lists_of(served, data, cases, progress(run, f"evaluate/{name}"))
        free = {} if base is None else read_json(base / "metrics.json")
        if ranked is None:
            among = validation_cases(data)
            found_at = ranks_in(lists_of(served, data, among).items, among)
            write_ranks(work, {called.order: found_at}, data.ids_of(among.users), among.sizes)
        ranks, sizes = read_ranks(ranked or work / VALIDATION, name)
        validation = dict(measure(RankedLists(ranks, served.width, sizes=sizes)))
        values = {"validation": validation, "test": on_test(data, cases, lists)}
        for split, found in values.items():
            found |= {key: value for key, value in free.get(split, {}).items() if key.startswith(FREE_METRICS)}
        write_lists(data, cases, lists.items, lists.scores, work)
        if base is not None:
            shutil.copyfile(base / FREE, work / FREE)
        write_json(work / "metrics.json", values)

    declared = Declaration(
        build,
        reads,
        files=("metrics.json", "predictions.parquet", FREE, VALIDATION),
        settings=(*(WITHOUT_POLICY if base is None else DECODING), *reward, *seed),
        also={"order": called.order, "metrics": measured(run.config.data.split.baskets)}
        | data.truth_read
        | data.validation_draw,
        version=3,
    )
    return declared


def on_test(data: RunData, cases: Cases, lists: Lists) -> dict[str, float]:
    """Return the metrics of lists of test cases."""
    options: dict[str, Any] = {"tail": data.tail, "utility": data.utility_at(cases), "sizes": cases.sizes}
    return dict(measure(RankedLists(ranks_in(lists.items, cases), lists.items.shape[1], items=lists.items, **options)))
