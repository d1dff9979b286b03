"""The stages `evaluate/<list>`: lists that combine a policy with other parts, measured as they are served.

The policy's own evaluation supplies the free beam, which ordering does not affect, and the stage `fuse` the
cross-fitted validation ranks.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from adagrpo.config import Config
from adagrpo.evaluation.predictions import ranks_in
from adagrpo.lists import Recommender
from adagrpo.lists.names import FUSE, RERANK, START, parse_list
from adagrpo.lists.table import SOURCES, fused
from adagrpo.metrics import RankedLists, measure, measured
from adagrpo.pipeline.choose_checkpoint import evaluation_of
from adagrpo.pipeline.directory import Declare, RunDirectory
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.json_files import read_json, write_json
from adagrpo.pipeline.list_makers import ListMaker, Lists, lists_of
from adagrpo.pipeline.stage import Declaration
from adagrpo.pipeline.stages.evaluate import write_lists
from adagrpo.pipeline.stages.fitting import DECODING, progress
from adagrpo.pipeline.stages.fuse import VALIDATION, fit_sources, fuse, read_ranks, validation_cases, write_ranks
from adagrpo.pipeline.stages.rerank_arms import re_rankings
from adagrpo.pipeline.versions import CatalogVersion
from adagrpo.types import Cases

WITHOUT_POLICY = ("evaluation", "max_history")  # settings that determine the lists of sources
FREE = "free.parquet"
FREE_METRICS = ("hallucination", "invalid")


def evaluate_list(run: RunDirectory, name: str) -> Declaration:
    """Declare the evaluation of a list, see `adagrpo.lists.names`."""
    data, called = RunData(run, CatalogVersion(run, run.catalog)), parse_list(name)
    models = Models(data)
    maker, arm = ListMaker(models), called.policy or START
    weights = run.weights_of(arm)
    base = None if called.policy is None else run.path(*evaluation_of(arm, "best"))
    ranked = None if called.policy is None else run.path(FUSE, arm, VALIDATION)
    inputs = [*data.training_files, data.prepared_file("test.parquet"), *data.catalog_files, *data.truth_files]
    inputs += [] if ranked is None else [ranked]
    seed = ["seed"] if ranked is None else []  # samples the validation cases
    inputs += [*maker.files(called), *([weights / "model.safetensors"] if base is not None else [])]
    inputs += [] if base is None else [base / FREE, base / "metrics.json"]

    reward = models.reward_reads if maker.asks_reward(called) else ()

    def build(work: Path) -> None:
        served, cases = maker.recommender(called, weights), data.measured_cases("test")
        lists = lists_of(served, data, cases, progress(run, f"evaluate/{name}"))
        free = {} if base is None else read_json(base / "metrics.json")
        if ranked is None:
            _rank(served, data, name, work)
        ranks, sizes = read_ranks(ranked or work / VALIDATION, name)
        validation = dict(measure(RankedLists(ranks, served.width, sizes=sizes)))
        values = {"validation": validation, "test": _on_test(data, cases, lists)}
        for split, found in values.items():
            found |= {key: value for key, value in free.get(split, {}).items() if key.startswith(FREE_METRICS)}
        write_lists(data, cases, lists.items, lists.scores, work)
        if base is not None:
            shutil.copyfile(base / FREE, work / FREE)
        write_json(work / "metrics.json", values)

    return Declaration(
        build,
        inputs,
        files=("metrics.json", "predictions.parquet", FREE, VALIDATION),
        settings=(*(WITHOUT_POLICY if base is None else DECODING), *reward, *seed),
        also={"metrics": measured(run.config.data.split.baskets)} | data.truth_read | data.validation_draw,
        schema=2,
    )


def list_stages(name: str, config: Config) -> dict[str, Declare]:
    """Return the stages that measure a combined list whose policy is evaluated; none for other lists."""
    called = parse_list(name)
    if called.order == RERANK:
        return re_rankings(name)
    if called.policy is None or called.order == "policy":
        return {}
    sources = dict.fromkeys(SOURCES[source].stage for source in fused(config) if SOURCES[source].fit is not None)
    stages: dict[str, Declare] = {str(stage): partial(fit_sources, stage=str(stage)) for stage in sources}
    stages[f"{FUSE}/{called.policy}"] = partial(fuse, arm=called.policy)
    return {**stages, f"evaluate/{name}": partial(evaluate_list, name=name)}


def _rank(served: Recommender, data: RunData, name: str, work: Path) -> None:
    cases = validation_cases(data)
    ranks = ranks_in(lists_of(served, data, cases).items, cases)
    write_ranks(work, {name: ranks}, data.ids_of(cases.users), cases.sizes)


def _on_test(data: RunData, cases: Cases, lists: Lists) -> dict[str, float]:
    options: dict[str, Any] = {"tail": data.tail, "utility": data.utility_at(cases), "sizes": cases.sizes}
    return dict(measure(RankedLists(ranks_in(lists.items, cases), lists.items.shape[1], items=lists.items, **options)))
