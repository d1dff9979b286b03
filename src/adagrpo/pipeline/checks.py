"""Refuse stale stages that a command reads, and `--set` keys that it does not.

A command rebuilds its own stages; evaluation and report skip stale arms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from adagrpo.config import dump_config
from adagrpo.errors import UserError
from adagrpo.pipeline.directory import ALWAYS, RunDirectory, command, remake_command
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.stage import MEASURES_REWARD, Part, Read, names_key, sources_of
from adagrpo.pipeline.staleness import finished_arms, parts_of, upstream

MEASURES = ("diagnose", "evaluate", "serve", "export", "report")  # no training depends on their results
DECIDES = ("prepare", "tokenize", "sft", "ranker", "evaluate", "decide")  # commands whose stages `decide` makes
ALL_OTHERS = ("diagnose", "evaluate")  # their `--set` may not make a finished stage stale


def check(run: RunDirectory, verb: str, stages: Iterable[str] = ()) -> None:
    """Refuse a command whose inputs are stale or whose settings are not its own.

    Args:
        stages: inputs besides the usual ones.

    Raises:
        UserError: with the command that fixes it.
    """
    parts = parts_of(run, measuring=verb in MEASURES)
    reward = reward_stages(run) if verb in MEASURES_REWARD else []
    wanted = [*_read_by(run, verb), *stages, *(name for name in reward if not _makes(run, verb, name))]
    needed = [parts[name] for name in upstream(parts, wanted)]
    keys = [text.partition("=")[0] for text in run.overrides if _changes(run, text.partition("=")[0])]
    for part in needed:
        if part.state == "damaged":
            raise UserError(part.why)
        if part.there and not part.usable:
            raise UserError(_refusal(run, part, keys))
    for key in keys:
        if key not in ALWAYS and not _reads(run, verb, key):
            raise UserError(_not_read(run, verb, key))
    if verb in ALL_OTHERS and run.directory == run.called:
        for part in parts.values():
            made_stale = _asked_for(part, keys)
            if made_stale and part.there and part not in needed and not _makes(run, verb, part.name):
                raise UserError(_spares(run, verb, part, made_stale))


def reward_stages(run: RunDirectory) -> list[str]:
    """Return the stages that the reward reads."""
    models = Models(RunData(run))
    try:
        return sources_of([*models.reward_files, *models.group_reward_files])
    except (UserError, OSError):  # the command reports it itself
        return []


def _read_by(run: RunDirectory, verb: str) -> list[str]:
    """Stages that a command reads but does not make."""
    if verb not in run.stages.commands:
        return ["tokenize"]
    reads: list[Read] = []
    arms = finished_arms(run) if verb in ("evaluate", "decide") else None
    for declare in run.stages.declared(run.config, [verb], arms).values():
        try:
            reads += declare(run).reads
        except (UserError, OSError):  # the command reports it itself
            continue
    return [name for name in sources_of(reads) if not _makes(run, verb, name)]


def _refusal(run: RunDirectory, part: Part, keys: list[str]) -> str:
    key = _asked_for(part, keys)
    if key is None:
        return f"{run.called}: {part.name} is stale: {part.why}; run {remake_command(run, part.name)}"
    change = next(change for change in part.changes if names_key(change.key, key))
    return (
        f"--set {key}: {part.name} reads it too, and was made with {change.key}={change.before};"
        f" run {remake_command(run, part.name)} first"
    )


def _reads(run: RunDirectory, verb: str, key: str) -> bool:
    if verb == "ranker" and names_key(key, "reward") and not run.config.without_order:
        return run.config.reward.holds("lambdarank")  # other kinds do not concern the ranker
    return run.stages.reads_key(verb, key)


def _not_read(run: RunDirectory, verb: str, key: str) -> str:
    others = [f"`adagrpo {other}`" for other in run.stages.commands if run.stages.reads_key(other, key)]
    return f"--set {key}: {verb} does not read it; " + (
        f"{', '.join(others)} {'do' if len(others) > 1 else 'does'}" if others else "no command of a run does"
    )


def _spares(run: RunDirectory, verb: str, part: Part, key: str) -> str:
    given = [text for text in run.overrides if names_key(text.partition("=")[0], key)]
    elsewhere = run.called.with_name(f"{run.called.name}-{verb}")
    first = (
        f"{remake_command(run, part.name)} first, or " if part.name.startswith("train/") and verb == "evaluate" else ""
    )
    return (
        f"--set {key}: {part.name} was made with another one, and would be stale; run {first}"
        f"{command(run, verb, given, out=elsewhere)}, which leaves {run.called} as it is"
    )


def _asked_for(part: Part, keys: list[str]) -> str | None:
    """The `--set` key that makes a stage stale."""
    return next((key for change in part.changes for key in keys if names_key(change.key, key)), None)


def _makes(run: RunDirectory, verb: str, stage: str) -> bool:
    row = run.stages.row(stage)
    return row is not None and any(map(row.made_by, DECIDES if verb == "decide" else (verb,)))


def _changes(run: RunDirectory, key: str) -> bool:
    if run.described is None:
        return True
    before, now = (_value(dump_config(config), key) for config in (run.described, run.config))
    return bool(before != now)


def _value(content: Mapping[str, Any], key: str) -> Any:
    value: Any = content
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
