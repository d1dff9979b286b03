"""The demo: one policy, a reward that is good and one that is not, and what training on each did to users.

    DIR                  a run of recipes/demo.yaml, whose reward is good: trees on counts that the policy does not read
    DIR-wrong-reward     the same run under a ranker fitted on what was shown alone; it reads what is the same from DIR

Both rewards are diagnosed before anything is trained on them. Then the same arms are trained under each, whatever the
diagnosis said, and measured user by user against continued NLL, and `decide` chooses among all lists. The marketplace
is simulated, so that what users would have liked is known; diagnosis, training and decision do not read it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from adagrpo.config import CompareConfig, Config, dump_config, resolve_config
from adagrpo.console import Console
from adagrpo.evaluation.comparison import Measured, compare
from adagrpo.lists.names import FUSE, REWARD, START
from adagrpo.pipeline.choose_checkpoint import evaluation_of
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.json_files import json_lines
from adagrpo.pipeline.run import Run
from adagrpo.pipeline.stages.paired_outcomes import read_measured
from adagrpo.rewards.boosted import require_lightgbm

GOOD, WRONG = "trees", "shown items alone"
WRONG_REWARD = ("reward.kind=sequential",)  # which the recipe fits on what was shown alone
BASELINE = "nll"
OUTPUT = "demo.json"


class DemoResult(NamedTuple):
    """Results of the demo."""

    metrics: dict[str, Any]  # content of metrics.json under the good reward
    rewards: dict[str, Any]  # demo.json: verdicts in `rewards`, `decisions`, `fused_weights`, `rows` of comparison
    pages: dict[str, Path]  # the report under each reward


def demo_runs(directory: Path, config: Config, console: Console) -> dict[str, Run]:
    """The run under each reward, of which nothing is made yet; see `run_demo`."""
    wrong = resolve_config(dump_config(config), WRONG_REWARD, "demo")
    beside = directory.with_name(f"{directory.name}-wrong-reward")
    return {
        GOOD: Run(directory, config, Path(), console),
        WRONG: Run(beside, wrong, Path(), console, source=directory.resolve()),
    }


def run_demo(directory: Path, config: Config, console: Console) -> DemoResult:
    """Diagnose, train, measure and decide under both rewards; what is done already is skipped.

    Args:
        directory: of the run under the good reward; the other one lies beside it.
        config: of recipes/demo.yaml, or of the like: a simulated marketplace, the arm `nll` among its arms.

    Raises:
        UserError: LightGBM is not installed, or one of the folders holds something else.
    """
    require_lightgbm("reward")
    runs = demo_runs(directory, config, console)
    with runs[GOOD].locked(), runs[WRONG].locked():
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
            decisions[name] = run.decide(train=True)
        fused = {name: _fused_weights(run) for name, run in runs.items()}
        content = {"rewards": verdicts, "decisions": decisions, "fused_weights": fused, "rows": _rows(runs)}
        runs[GOOD].write_output(OUTPUT, json_lines(content, allow_nan=False))
    pages = {name: run.path("report.html") for name, run in runs.items()}
    return DemoResult(runs[GOOD].results, content, pages)


def _fused_weights(run: Run) -> dict[str, float]:
    """The weights of the policy and of the reward in the list `fuse`, in spreads."""
    weights = run.content(FUSE, START, "weights.json")[FUSE]["weights"]
    own = [name for name in weights if name.startswith(REWARD)] or ["ranker"]  # the run's ranker is a part anyway
    return {"policy": weights["policy"], "reward": sum(weights[name] for name in own)}


def _rows(runs: dict[str, Run]) -> list[dict[str, Any]]:
    """Each arm's last checkpoint under each reward against continued NLL, which reads no reward."""
    measured: dict[tuple[str, str], list[Measured]] = {}
    for reward, run in runs.items():
        data = RunData(run)
        arms = [arm.name for arm in run.config.train.arms]
        for arm in ("sft", *arms) if reward == GOOD else [arm for arm in arms if arm != BASELINE]:
            name = arm if arm in ("sft", BASELINE) else f"{reward}: {arm}"
            measured[name, "final"] = [read_measured(data, run.path(*evaluation_of(arm, "final")))]
    return compare(measured, [runs[GOOD].config.seed], CompareConfig(baseline=BASELINE, margins={}))
