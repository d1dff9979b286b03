"""The demo: train AdaGRPO with its controls under a good and a wrong reward, and decide under each what to serve.

DIR is a run of recipes/demo.yaml, whose reward trees count what the policy does not read; DIR-wrong-reward has a ranker
fitted on impressions only. Neither diagnosis, training nor `decide` reads the simulated truth.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from adagrpo.config import CompareConfig, Config, dump_config, resolve_config
from adagrpo.console import Console, Silent
from adagrpo.errors import ServiceError, UserError
from adagrpo.evaluation.comparison import Measured, compare, compare_pairs
from adagrpo.lists.names import FUSE, REWARD, START
from adagrpo.objective import GATES, GroupSummary
from adagrpo.pipeline.choose_checkpoint import evaluation_of
from adagrpo.pipeline.directory import locked
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.json_files import json_lines, read_rows
from adagrpo.pipeline.outputs import write_output
from adagrpo.pipeline.run import Run
from adagrpo.pipeline.stages.ranker_report import read_measured
from adagrpo.rewards.model_files import require
from adagrpo.stopping import terminable

GOOD, WRONG = "trees", "shown items alone"
WRONG_REWARD = ("reward.kind=sequential",)  # fitted by the recipe on impressions only
BASELINE = "nll"
GATES_COMPARED = [("adagrpo", "adagrpo-random")]
OUTPUT = "demo.json"


class DemoResult(NamedTuple):
    """Results of the demo."""

    metrics: dict[str, Any]  # metrics.json under the good reward
    rewards: dict[str, Any]  # demo.json: verdicts in `rewards`, `training`, `decisions`, `fused_weights`
    pages: dict[str, Path]  # the report under each reward


def demo_runs(directory: Path, config: Config, console: Console) -> dict[str, Run]:
    """Return the run under each reward without making it."""
    wrong = resolve_config(dump_config(config), WRONG_REWARD, "demo")
    beside = directory.with_name(f"{directory.name}-wrong-reward")
    return {
        GOOD: Run(directory, config, Path(), console),
        WRONG: Run(beside, wrong, Path(), console, source=directory.resolve()),
    }


def run_demo(directory: Path, config: Config, console: Console, *, compete: bool = False) -> DemoResult:
    """Diagnose, train, measure and decide under both rewards, skipping finished work; `compete`: trained arms too."""
    require("lightgbm", "reward")
    runs = demo_runs(directory, config, console)
    with locked(runs[GOOD]):
        runs[GOOD].prepare()
        runs[GOOD].tokenize()
        runs[GOOD].sft()
    with side_by_side(directory, config, compete), locked(runs[GOOD]):
        _all_of(runs[GOOD], compete)
    with locked(runs[GOOD]), locked(runs[WRONG]):  # what is finished is read, and what failed beside it is said
        made = {name: _all_of(run, compete) for name, run in runs.items()}
        verdicts, decisions = ({name: parts[place] for name, parts in made.items()} for place in (0, 1))
        fused = {}  # weights of policy and reward in `fuse`, in units of σ
        for name, run in runs.items():
            weights = run.content(FUSE, START, "weights.json")[FUSE]["weights"]
            own = [part for part in weights if part.startswith(REWARD)] or ["ranker"]  # the ranker is always a part
            fused[name] = {"policy": weights["policy"], "reward": sum(weights[part] for part in own)}
        content = {"rewards": verdicts, "decisions": decisions, "fused_weights": fused}
        content["training"] = {name: trained(run) for name, run in runs.items()}
        write_output(runs[GOOD], OUTPUT, json_lines(content, allow_nan=False))
    pages = {name: run.path("report.html") for name, run in runs.items()}
    return DemoResult(runs[GOOD].results, content, pages)


def _all_of(run: Run, compete: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Make a run whole; return verdict and decision."""
    run.ranker()
    verdict: dict[str, Any] = run.diagnose().content["verdict"]
    run.complete()
    decision = run.decide(train=compete)
    run.strata()
    return verdict, decision


@contextmanager
def side_by_side(directory: Path, config: Config, compete: bool) -> Iterator[None]:
    """Make the run of the wrong reward in another process, each with half of the threads."""
    threads = torch.get_num_threads()
    if threads < 2:
        yield
        return
    beside = get_context("spawn").Process(
        target=_beside, args=(directory, dump_config(config), compete, threads // 2), daemon=True
    )
    beside.start()
    try:
        torch.set_num_threads(threads - threads // 2)
        yield
        beside.join()
    finally:
        beside.terminate()
        beside.join()
        torch.set_num_threads(threads)


def _beside(directory: Path, recipe: dict[str, Any], compete: bool, threads: int) -> None:
    torch.set_num_threads(threads)
    run = demo_runs(directory, resolve_config(recipe, (), "demo"), Silent())[WRONG]
    with suppress(UserError, ServiceError), terminable(), locked(run):  # the first process meets them again
        _all_of(run, compete)


def trained(run: Run) -> dict[str, Any]:
    """Return the last steps of a run's arms against continued NLL, and the gate against a random one of its size.

    Keys: `rows` and `pairs` as of `adagrpo.evaluation.comparison`, and `admission`, by arm the means over all steps, by
    the reward and by shuffled rewards. Nothing without an arm `nll`.
    """
    arms = [arm.name for arm in run.config.train.arms]
    if BASELINE not in arms:
        return {"rows": [], "pairs": [], "admission": {}}
    data, measured = RunData(run), dict[tuple[str, str], list[Measured]]()
    for arm in ("sft", *arms):
        measured[arm, "final"] = [read_measured(data, run.path(*evaluation_of(arm, "final")))]
    pairs = [pair for pair in GATES_COMPARED if set(pair) <= {*arms}]
    options = CompareConfig(baseline=BASELINE, margins={}, pairs=tuple(pairs))
    admission = {}
    for gated in run.config.train.arms:
        if gated.admits is not None and GATES[gated.admits].reads_tests:
            groups = map(GroupSummary.of_row, read_rows(run.checked("train", gated.name, "steps.jsonl")))
            shares = [(one.admission, one.shuffled_admission) for one in groups if one.admission is not None]
            admission[gated.name] = [float(np.mean(np.array(one, float))) for one in zip(*shares, strict=True)]
    rows = compare(measured, [run.config.seed], options)
    return {"rows": rows, "pairs": compare_pairs(measured, options), "admission": admission}
