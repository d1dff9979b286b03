"""State of a run's stages and the next command, and the plan of a command; neither writes to the run."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from adagrpo.pipeline.checks import check_named
from adagrpo.pipeline.description import DESCRIPTION
from adagrpo.pipeline.directory import (
    REFIT,
    REFRESH,
    RunDirectory,
    command,
    events_of,
    find_content,
    remake_command,
    trained_arms,
)
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.json_files import read_json
from adagrpo.pipeline.make import begun_for, make
from adagrpo.pipeline.named_lists import DECISION
from adagrpo.pipeline.outputs import COLLECTED, DECIDED, is_stale
from adagrpo.pipeline.refit import refit_of, refreshes, served_refresh, why_not_refit
from adagrpo.pipeline.run import Run
from adagrpo.pipeline.stage import RUN, Declare, Part
from adagrpo.pipeline.stages.diagnose import why_refused
from adagrpo.pipeline.staleness import finished_arms, parts_of, stages_of
from adagrpo.report.tables import Table
from adagrpo.storage.locks import at_work
from adagrpo.storage.marks import is_marked, read_mark


def status(directory: Path) -> dict[str, Any]:
    """Return the state of a run or comparison, JSON-able."""
    if is_marked(directory) and read_mark(directory).get("kind") == "comparison":
        runs = sorted(path.parent.name for path in directory.glob(f"seed-*/{DESCRIPTION}"))
        finished, first = (directory / "comparison.json").is_file(), "none of its runs is begun"
        if runs:
            first = f"`adagrpo status --run {directory / runs[0]}` says how far a run is"
        following = f"the `adagrpo compare` that began it, with the same arguments, goes on with it; {first}"
        return {
            "kind": "comparison",
            "comparison": str(directory),
            "runs": runs,
            "finished": finished,
            "at_work": at_work(directory),
            "next": f"`adagrpo report --run {directory}`, or {first}" if finished else following,
        }
    run = Run.open(directory)
    parts = parts_of(run, logs=True, measuring=True)
    ended = {row["stage"]: row for row in events_of(run) if row["event"] == "end"}
    stages = []
    for part in parts.values():
        why = [part.why] if part.why else []
        if part.state in ("done", "stale") and begun_for(run.directory, part.name) is not None:
            why.append("an attempt with other settings was interrupted")
        made = ended.get(part.name, {}) if part.there else {}
        row = {"stage": part.name, "state": part.state, "made": made.get("time"), "seconds": made.get("seconds")}
        stages.append(row | {"why": "; ".join(why)})
    checkpoints: dict[str, dict[str, int]] = {}
    for name in ("sft", "ranker", *trained_arms(run)):
        for kind in ("best", "final"):
            path = run.path(name if name in ("sft", "ranker") else f"train/{name}", kind, "checkpoint.json")
            if path.is_file():
                checkpoints.setdefault(name, {})[kind] = read_json(path)["step"]
    outputs, metrics = dict[str, dict[str, str]](), run.path("metrics.json")
    for name in ("metrics.json", "report.html", DECISION):
        there = (path := run.path(name)).is_file()
        why_stale = is_stale(run, DECIDED if name == DECISION else COLLECTED, parts) if there else ""
        if there and name == "report.html":
            older = metrics.is_file() and path.stat().st_mtime_ns < metrics.stat().st_mtime_ns
            of_stale = "it shows a metrics.json that is stale" if why_stale and metrics.is_file() else ""
            why_stale = "older than metrics.json" if older else of_stale
        outputs[name] = {"state": "missing" if not there else "stale" if why_stale else "done", "why": why_stale}
    following = _next(run, parts, {name: entry["state"] for name, entry in outputs.items()}) or ""
    if following.count("`") == 2 and following.startswith("`") and following.endswith("`"):  # a command alone
        following = following.strip("`")
    if outputs[DECISION]["state"] == "missing":  # nothing was decided
        del outputs[DECISION]
    elif outputs[DECISION]["state"] == "done" and run.config.decide.refit:
        chosen = read_json(run.path(DECISION))["chosen"]
        why_not = why_not_refit(refit_of(run), chosen)
        outputs[REFIT] = {"state": "not served" if why_not else "done", "why": f"it {why_not}" if why_not else ""}
        if not why_not and refreshes(run)[0]:
            why_not = served_refresh(run, chosen)[1]
            outputs[REFRESH] = {"state": "not served" if why_not else "done", "why": why_not}
    return {
        "kind": "run",
        "run": str(directory),
        "name": run.config.name,
        "goes_on_from": None if run.source is None else str(run.source),
        "without_order": run.config.without_order,
        "stages": stages,
        "arms": {name.removeprefix("train/"): part.state for name, part in parts.items() if name.startswith("train/")},
        "checkpoints": checkpoints,
        **outputs,
        "at_work": at_work(directory),
        "next": following or None,
    }


def status_tables(content: Mapping[str, Any]) -> tuple[Table | None, list[str]]:
    """Return a table of the stages, or None, and sentences below it."""
    following = f"next: {content['next'] or 'nothing, report.html has the results'}"
    if content["at_work"] is not None:
        at = f"process {content['at_work']} is at work here"
        following = f"{at}; what is interrupted or missing may be on its way"
    if content["kind"] == "comparison":
        runs = ", ".join(content["runs"]) or "none yet"
        done = "is written" if content["finished"] else "is not written yet"
        held = f"{content['comparison']}: holds a comparison, not a run; its runs: {runs}; comparison.json {done}"
        return None, [held, following]
    rows = [
        (row["stage"], row["state"], row["made"] or "", f"{row['seconds']:.1f}" if row["made"] else "", row["why"])
        for row in content["stages"]
    ]
    header = ("stage", "state", "made", "seconds", "why")
    table = Table(header, tuple(rows), ("left", "left", "left", "right", "left"))
    lines = [f"goes on from {content['goes_on_from']}"] if content["goes_on_from"] else []
    for name in ("metrics.json", "report.html", DECISION, REFIT, REFRESH):
        entry = content.get(name)
        lines += [f"{name}: {entry['state']}" + (f", {entry['why']}" if entry["why"] else "")] if entry else []
    return table, [*lines, following]


def _next(run: Run, parts: Mapping[str, Part], outputs: Mapping[str, str]) -> str | None:
    decided = outputs[DECISION]
    for part in parts.values():
        if part.state == "damaged":
            return f"{part.why}, then run {remake_command(run, part.name)}"
        if part.outdated:  # a run by `decide` has no recipe for `run`
            return command(run, "run" if decided == "missing" or trained_arms(run) else "decide")

    def best_list() -> str:
        if decided != "done":
            return command(run, "decide")
        chosen = read_json(run.path(DECISION))["chosen"]
        return f"`adagrpo serve --run {shlex.quote(str(run.called))} --arm {chosen}`"

    if decided == "stale":
        return best_list()
    for part in parts.values():
        row = run.stages.row(part.name)
        if not part.usable and part.state != "unused" and row is not None and not row.on_request and not row.also_by:
            if row.command == "train" and any(arm.term for arm in run.config.train.arms):
                if "diagnose" not in parts:  # before training on the reward
                    return command(run, "diagnose")
                content = find_content(run, "diagnose", "diagnose.json")
                if content is not None and parts["diagnose"].usable and why_refused(content) is not None:
                    return best_list()
            return remake_command(run, part.name)
    if outputs["metrics.json"] != "done":
        return remake_command(run, "metrics.json")
    if outputs["report.html"] != "done":
        return command(run, "report")
    return None if run.config.without_order else best_list()


def plan(
    run: RunDirectory, commands: Collection[str] = RUN, more: Mapping[str, Declare] = MappingProxyType({})
) -> dict[str, Any]:
    """Return what some commands would do with a run, JSON-able; `seconds` are None if a stage was never timed."""
    arms = None if "train" in commands else finished_arms(run)
    parts = parts_of(run, logs=True, more=more)
    again: dict[str, bool] = {}
    for name, part in parts.items():
        again[name] = not part.usable or part.outdated or any(again.get(source, False) for source in part.sources)
    asked = {**stages_of(run, commands, arms), **more}
    stages = {name: again.get(name, True) or name == "diagnose" for name in asked}
    ended = {row["stage"]: float(row["seconds"]) for row in events_of(run) if row["event"] == "end"}

    def seconds_a_step(name: str) -> float | None:
        path = run.path(name, "final", "checkpoint.json")
        steps = read_json(path)["step"] if path.is_file() else 0
        return ended[name] / steps if steps else None

    rows: list[dict[str, Any]] = []
    with _prepared(run, unchanged=not again["prepare"]) as data:
        check_named(data, commands)
        for name, made in stages.items():
            steps, seconds = _steps(data, name), ended.get(name)
            if steps is not None:  # an arm that was never trained takes as long as the slowest one that was
                arms_trained = [other for other in ended if other.startswith("train/")]
                same = [name] if name in ended else arms_trained if name.startswith("train/") else []
                rates = [rate for other in same if (rate := seconds_a_step(other)) is not None]
                seconds = max(rates) * steps if rates else None
            state, seconds = ("make", seconds) if made else ("unchanged", 0.0)
            rows.append({"stage": name, "state": state, "steps": steps, "seconds": seconds})
        summary = read_json(data.prepared / "summary.json")
    summary.pop("understood", None)
    taken = [row["seconds"] for row in rows]
    return {"stages": rows, "data": summary, "seconds": None if None in taken else sum(taken)}


@contextmanager
def _prepared(run: RunDirectory, *, unchanged: bool) -> Iterator[RunData]:
    if unchanged and run.path("prepare").is_dir():
        yield RunData(run)
        return
    with tempfile.TemporaryDirectory(prefix="adagrpo-") as folder:
        other = type(run)(Path(folder) / "run", run.config, run.data, None, run.code)
        for name, declare in run.stages.declared(run.config, ["prepare"]).items():
            make(other, name, declare(other))
        yield RunData(other)


def _steps(data: RunData, stage: str) -> int | None:
    config, lm = data.config, data.config.policy.lm
    arm = next((arm for arm in config.train.arms if f"train/{arm.name}" == stage), None)
    if stage == "ranker" or stage.startswith("ranker/fold-"):
        settings = config.ranker.fit
    elif arm is not None:
        settings = config.train.fit
    elif stage != "sft":
        return None
    elif lm is not None and lm.trained:
        return 0  # the checkpoint is kept as it is
    else:
        settings = config.sft
    steps = max(1, round(settings.epochs * Models(data).schedule(settings).steps_per_epoch))
    return steps if arm is None else steps * arm.resolved_objective(config.objective).num_iterations
