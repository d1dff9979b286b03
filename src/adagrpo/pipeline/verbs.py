"""What the verbs do: one table for logs with an order and for those without (`adagrpo.pipeline.unordered`).

Which of both a run has is asked here alone. A verb that has no meaning without an order is refused in one line.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from adagrpo.config import Config
from adagrpo.errors import UserError
from adagrpo.pipeline import unordered
from adagrpo.pipeline.chain import parts_of
from adagrpo.pipeline.checks import check, left_out_arms
from adagrpo.pipeline.collected import note_collected
from adagrpo.pipeline.diagnosed import heed_diagnosis
from adagrpo.pipeline.export import export as _export
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.named_files import check_named
from adagrpo.pipeline.recommend import recommend_users as _recommend_users
from adagrpo.pipeline.rewards import check_reward
from adagrpo.pipeline.run import Run
from adagrpo.pipeline.serve import serve as _serve
from adagrpo.pipeline.served_log import publish_first
from adagrpo.pipeline.shown import Shown
from adagrpo.pipeline.stages.diagnose import diagnose_reward as _diagnose_reward
from adagrpo.pipeline.stages.evaluate import collect as _collect
from adagrpo.pipeline.stages.evaluate import evaluate as _evaluate_checkpoints
from adagrpo.pipeline.stages.example_rollouts import draw_examples
from adagrpo.pipeline.stages.fit_ranker import fit_ranker as _fit_ranker
from adagrpo.pipeline.stages.paired_outcomes import pair_outcomes
from adagrpo.pipeline.stages.post_train import fit_arm as _fit_arm
from adagrpo.pipeline.stages.prepare import prepare as _prepare
from adagrpo.pipeline.stages.prepare import simulate_marketplace
from adagrpo.pipeline.stages.ranker_report import report_ranker
from adagrpo.pipeline.stages.reranking import re_ranked
from adagrpo.pipeline.stages.sft import fit_sft as _fit_sft
from adagrpo.pipeline.stages.tokenize import tokenize as _tokenize
from adagrpo.report import write_report as _write_report

__all__ = [
    "collect",
    "diagnose_reward",
    "evaluate",
    "export",
    "fit_and_report",
    "fit_arm",
    "fit_ranker",
    "fit_sft",
    "prepare",
    "recommend_users",
    "refuse_without_order",
    "run_all",
    "serve",
    "tokenize",
    "train",
    "write_report",
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
    *,
    name: str | None = None,
    keeps: bool = True,
) -> Callable[Concatenate[Run, Given], Result]:
    """What is done with a run of either kind of logs.

    Args:
        ordered: what is done.
        without_order: with logs that have no order; None where it is refused.
        name: of the verb that is checked before, see `adagrpo.pipeline.checks`; None checks nothing.
        keeps: run.yaml takes on the settings of this command when all is done.
    """

    @wraps(ordered)
    def carry_out(run: Run, /, *arguments: Given.args, **options: Given.kwargs) -> Result:
        if without_order is None or not run.config.without_order:
            refuse_without_order(run.config, f"adagrpo ranker --run {run.called}")
        if name is not None and run.processes.is_main_process:
            check(run, name)
        work = without_order if without_order is not None and run.config.without_order else ordered
        result = work(run, *arguments, **options)
        if keeps:
            run.keep_settings()
        return result

    return carry_out


def _run_all(run: Run) -> tuple[dict[str, Any], Path]:
    """Every stage of a run.

    Returns:
        The content of metrics.json, and the path of the report. In a process that does not lead, which has no part in
        what follows training, nothing yet and the path.
    """
    _say_what_is_made_again(run)
    with run.locked():
        publish_first(run)
        simulate_marketplace(run)
        _prepare(run)
        check_named(RunData(run), ("train", "evaluate"))
        _check_test_cases(run)
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
        return collect(run, arms), write_report(run)


def _check_test_cases(run: Run) -> None:
    """Refuse a split in time without a test case before a model is fitted: evaluation would, after training."""
    prepared = json.loads(run.checked("prepare", "summary.json").read_text(encoding="utf-8"))
    split = run.config.data.split
    if split.kind == "temporal" and not prepared["test_cases"]:
        last = prepared.get("understood", {}).get("time", {}).get("last", "unknown")
        raise UserError(
            f"data.split.test_from: no user with a history has an interaction at or after {split.test_from} to be"
            f" tested on; the last time of the logs is {last}"
        )


def _run_all_without_order(run: Run) -> tuple[dict[str, Any], Path]:
    """Every stage of a run whose logs have no order; see `_run_all`."""
    _say_what_is_made_again(run)
    return unordered.run_all(run)


def _say_what_is_made_again(run: Run) -> None:
    """Note each finished stage that a changed setting, file or log makes again; what follows from it goes unsaid."""
    if not run.processes.is_main_process:
        return
    parts = parts_of(run, logs=True)
    for part in parts.values():
        again = part.outdated or (part.there and part.state == "stale" and _is_of_run(part.name))
        if again and all(parts[one].usable for one in part.sources if one in parts):
            run.console.note(f"note: {part.name} is made again, with what is made from it: {part.why}")


def _is_of_run(stage: str) -> bool:
    """Whether `adagrpo run` makes a stage: it diagnoses nothing, and re-ranks no arms, and makes no catalogues."""
    kind, _, name = stage.partition("/")
    return kind not in ("diagnose", "catalogs") and (kind != "evaluate" or re_ranked(name.partition("/")[0]) is None)


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


def collect(run: Run, arms: list[str]) -> dict[str, Any]:
    """Gather the results of some arms into metrics.json, with the trained arms that are left out, and why."""
    left_out = left_out_arms(run)
    for arm, why in left_out.items():
        run.console.stage(f"train/{arm}", f"left out: {why}", 0.0)
    content = _collect(run, arms, left_out)
    note_collected(run, content)
    run.keep_settings()
    return content


def write_report(run: Run) -> Path:
    """Write report.html of what was measured.

    Raises:
        UserError: nothing was, or what was is out of date.
    """
    shown = Shown(run)
    return _write_report(shown, shown.notes)


def _evaluate(run: Run, arms: list[str]) -> None:
    """Evaluate every checkpoint of the arms, hold them against each other, and draw what the report shows."""
    _evaluate_checkpoints(run, arms)
    pair_outcomes(run, arms)
    draw_examples(run)


def _diagnose(run: Run, second_ranker: Path | None = None) -> dict[str, Any]:
    """Diagnose the reward; a report that is there already is written again, since it tells the verdict."""
    result = _diagnose_reward(run, second_ranker)
    if (run.directory / "report.html").is_file():
        try:
            write_report(run)
        except UserError as error:  # what it shows beside the verdict is of other settings
            run.console.note(f"report.html is left as it is: {error}")
    return result


run_all = _verb(_run_all, _run_all_without_order)
prepare = _verb(_prepare, unordered.prepare)
tokenize = _verb(_tokenize, name="tokenize")
fit_sft = _verb(_fit_sft, name="sft")
fit_ranker = _verb(_fit_ranker, unordered.fit_ranker, name="ranker")
fit_and_report: Callable[[Run], tuple[dict[str, Any], Path] | None] = _verb(
    _fit_ranker, unordered.fit_and_report, name="ranker"
)
train = _verb(_train, name="train")
fit_arm = _verb(_fit_arm, name="train")
evaluate = _verb(_evaluate, name="evaluate")
diagnose_reward = _verb(_diagnose, name="diagnose")
export = _verb(_export, keeps=False)
serve = _verb(_serve, keeps=False)
recommend_users = _verb(_recommend_users, keeps=False)
