"""What the verbs do: one table for logs with an order and for those without (`adagrpo.pipeline.unordered`).

Which of both a run has is asked here alone. A verb that has no meaning without an order is refused in one line.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from adagrpo.config import Config
from adagrpo.errors import UserError
from adagrpo.pipeline import unordered
from adagrpo.pipeline.diagnosed import heed_diagnosis
from adagrpo.pipeline.export import export as _export
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.rewards import check_reward
from adagrpo.pipeline.run import Run
from adagrpo.pipeline.serve import serve as _serve
from adagrpo.pipeline.stages.diagnose import diagnose_reward as _diagnose_reward
from adagrpo.pipeline.stages.evaluate import collect
from adagrpo.pipeline.stages.evaluate import evaluate as _evaluate
from adagrpo.pipeline.stages.fit_ranker import fit_ranker as _fit_ranker
from adagrpo.pipeline.stages.post_train import fit_arm as _fit_arm
from adagrpo.pipeline.stages.prepare import prepare as _prepare
from adagrpo.pipeline.stages.prepare import simulate_marketplace
from adagrpo.pipeline.stages.ranker_report import report_ranker
from adagrpo.pipeline.stages.sft import fit_sft as _fit_sft
from adagrpo.pipeline.stages.tokenize import tokenize as _tokenize
from adagrpo.report import write_report

__all__ = [
    "diagnose_reward",
    "evaluate",
    "export",
    "fit_and_report",
    "fit_arm",
    "fit_ranker",
    "fit_sft",
    "prepare",
    "refuse_without_order",
    "run_all",
    "serve",
    "tokenize",
    "train",
]

Given = ParamSpec("Given")
Result = TypeVar("Result")


def refuse_without_order(config: Config, command: str) -> None:
    """Refuse what predicts a next item where nothing says what came next.

    Args:
        config: of the run.
        command: what there is to do instead.

    Raises:
        UserError: its logs are impressions without order.
    """
    if config.without_order:
        raise UserError(
            "data.split.kind: impressions has no order, so no next item for a policy to learn;"
            f" `{command}` fits and examines the ranker"
        )


def _verb(
    ordered: Callable[Concatenate[Run, Given], Result],
    without_order: Callable[Concatenate[Run, Given], Result] | None = None,
) -> Callable[Concatenate[Run, Given], Result]:
    """What is done with a run of either kind of logs; None where it is refused."""

    @wraps(ordered)
    def carry_out(run: Run, /, *arguments: Given.args, **options: Given.kwargs) -> Result:
        if without_order is not None and run.config.without_order:
            return without_order(run, *arguments, **options)
        refuse_without_order(run.config, f"adagrpo ranker --run {run.directory}")
        return ordered(run, *arguments, **options)

    return carry_out


def _run_all(run: Run) -> tuple[dict[str, Any], Path]:
    """Every stage of a run.

    Returns:
        The content of metrics.json, and the path of the report. In a process that does not lead, which has no part in
        what follows training, nothing yet and the path.
    """
    with run.locked():
        simulate_marketplace(run)
        _prepare(run)
        _tokenize(run)
        _fit_sft(run)
        _fit_ranker(run)
        _train(run, anyway=True)
        run.go_on_alone()
        if not run.processes.is_main_process:
            return {}, run.path("report.html")
        arms = [arm.name for arm in run.config.train.arms]
        _evaluate(run, arms)
        report_ranker(run)
        metrics = collect(run, arms)
        return metrics, write_report(run)


def _train(run: Run, anyway: bool = False) -> None:
    """Post-train every arm of the configuration.

    Args:
        run: with the stages before.
        anyway: also on a reward that was diagnosed and not recommended; a note says so.

    Raises:
        UserError: see `heed_diagnosis`.
    """
    heed_diagnosis(run, anyway=anyway)
    check_reward(Models(RunData(run)))
    for arm in run.config.train.arms:
        _fit_arm(run, arm)


run_all = _verb(_run_all, unordered.run_all)
prepare = _verb(_prepare, unordered.prepare)
tokenize = _verb(_tokenize)
fit_sft = _verb(_fit_sft)
fit_ranker = _verb(_fit_ranker, unordered.fit_ranker)
fit_and_report: Callable[[Run], tuple[dict[str, Any], Path] | None] = _verb(_fit_ranker, unordered.fit_and_report)
train = _verb(_train)
fit_arm = _verb(_fit_arm)
evaluate = _verb(_evaluate)
diagnose_reward = _verb(_diagnose_reward)
export = _verb(_export)
serve = _verb(_serve)
