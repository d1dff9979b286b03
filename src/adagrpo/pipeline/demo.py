"""The demo: decide under a good and a bad reward what to serve, and measure the effect on users.

DIR is a run of recipes/demo.yaml, whose reward trees count what the policy does not read; DIR-wrong-reward has a ranker
fitted on impressions only. Neither diagnosis, training nor `decide` reads the simulated truth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from adagrpo.config import CompareConfig, Config, dump_config, resolve_config
from adagrpo.console import Console
from adagrpo.evaluation.comparison import Measured, compare
from adagrpo.lists.names import FUSE, REWARD, START
from adagrpo.pipeline.choose_checkpoint import evaluation_of
from adagrpo.pipeline.directory import locked
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.json_files import json_lines
from adagrpo.pipeline.outputs import write_output
from adagrpo.pipeline.run import Run
from adagrpo.pipeline.stages.ranker_report import read_measured
from adagrpo.rewards.model_files import require

GOOD, WRONG = "trees", "shown items alone"
WRONG_REWARD = ("reward.kind=sequential",)  # fitted by the recipe on impressions only
BASELINE = "nll"
OUTPUT = "demo.json"


class DemoResult(NamedTuple):
    """Results of the demo."""

    metrics: dict[str, Any]  # metrics.json under the good reward
    rewards: dict[str, Any]  # demo.json: verdicts in `rewards`, `decisions`, `fused_weights`, `rows` of trained arms
    pages: dict[str, Path]  # the report under each reward


def demo_runs(directory: Path, config: Config, console: Console) -> dict[str, Run]:
    """Return the run under each reward without making it."""
    wrong = resolve_config(dump_config(config), WRONG_REWARD, "demo")
    beside = directory.with_name(f"{directory.name}-wrong-reward")
    return {
        GOOD: Run(directory, config, Path(), console),
        WRONG: Run(beside, wrong, Path(), console, source=directory.resolve()),
    }


def run_demo(directory: Path, config: Config, console: Console) -> DemoResult:
    """Diagnose, train, measure and decide under both rewards, skipping finished work; arms are compared with `nll`."""
    require("lightgbm", "reward")
    runs = demo_runs(directory, config, console)
    with locked(runs[GOOD]), locked(runs[WRONG]):
        runs[GOOD].prepare()
        runs[GOOD].tokenize()
        runs[GOOD].sft()
        verdicts: dict[str, dict[str, Any]] = {}
        for name, run in runs.items():
            run.ranker()
            verdicts[name] = run.diagnose().content["verdict"]
        decisions: dict[str, dict[str, Any]] = {}
        for name, run in runs.items():
            run.complete()
            decisions[name] = run.decide(train=bool(config.train.arms))
        fused = {}  # weights of policy and reward in `fuse`, in units of σ
        for name, run in runs.items():
            weights = run.content(FUSE, START, "weights.json")[FUSE]["weights"]
            own = [part for part in weights if part.startswith(REWARD)] or ["ranker"]  # the ranker is always a part
            fused[name] = {"policy": weights["policy"], "reward": sum(weights[part] for part in own)}
        content = {"rewards": verdicts, "decisions": decisions, "fused_weights": fused, "rows": _rows(runs)}
        write_output(runs[GOOD], OUTPUT, json_lines(content, allow_nan=False))
    pages = {name: run.path("report.html") for name, run in runs.items()}
    return DemoResult(runs[GOOD].results, content, pages)


def _rows(runs: dict[str, Run]) -> list[dict[str, Any]]:
    if BASELINE not in (arm.name for arm in runs[GOOD].config.train.arms):
        return []
    measured: dict[tuple[str, str], list[Measured]] = {}
    for reward, run in runs.items():
        data = RunData(run)
        arms = [arm.name for arm in run.config.train.arms]
        for arm in ("sft", *arms) if reward == GOOD else [arm for arm in arms if arm != BASELINE]:
            name = arm if arm in ("sft", BASELINE) else f"{reward}: {arm}"
            measured[name, "final"] = [read_measured(data, run.path(*evaluation_of(arm, "final")))]
    return compare(measured, [runs[GOOD].config.seed], CompareConfig(baseline=BASELINE, margins={}))
