"""Refuse stale stages that a command reads, and `--set` keys that it does not.

A command rebuilds its own stages; evaluation and report skip stale arms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from adagrpo.config import Change, dump_config
from adagrpo.errors import UserError
from adagrpo.pipeline.directory import ALWAYS, RunDirectory, command, remake_command
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.stage import MEASURES_REWARD, Part, names_key, sources_of
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
    parts, config = parts_of(run, measuring=verb in MEASURES), run.config
    makes = DECIDES if verb == "decide" else (verb,)
    rows = {name: run.stages.row(name) for name in parts}
    made = {name for name, row in rows.items() if row is not None and any(map(row.made_by, makes))}
    read = [*stages, *(reward_stages(run) if verb in MEASURES_REWARD else [])]
    if verb in run.stages.commands:
        arms = finished_arms(run) if verb in ("evaluate", "decide") else None
        for declare in run.stages.declared(config, [verb], arms).values():
            with suppress(UserError, OSError):  # the command reports it itself
                read += sources_of(declare(run).reads)
    else:
        read.append("tokenize")
    needed = [parts[name] for name in upstream(parts, (name for name in read if name not in made))]
    keys = [text.partition("=")[0] for text in run.overrides]
    if run.described is not None:
        before, now = dump_config(run.described), dump_config(config)
        keys = [key for key in keys if _value(before, key) != _value(now, key)]

    def asked_for(part: Part) -> tuple[Change | None, str]:
        """Return the first change that makes a stage stale and that a `--set` key asks for."""
        found = ((change, key) for change in part.changes for key in keys if names_key(change.key, key))
        return next(found, (None, ""))

    for part in needed:
        if part.state == "damaged":
            raise UserError(part.why)
        if part.there and not part.usable:
            change, key = asked_for(part)
            again = remake_command(run, part.name)
            if change is None:
                raise UserError(f"{run.called}: {part.name} is stale: {part.why}; run {again}")
            was = f"{change.key}={change.before}"
            raise UserError(f"--set {key}: {part.name} reads it too, and was made with {was}; run {again} first")

    for key in keys:
        read_here = run.stages.reads_key(verb, key)
        if verb == "ranker" and names_key(key, "reward") and not config.without_order:
            read_here = config.reward.holds("lambdarank")  # other kinds do not concern the ranker
        if verb == "serve" and names_key(key, "rules"):  # no stage of a list depends on them
            read_here = True
        if key not in ALWAYS and not read_here:
            others = [f"`adagrpo {other}`" for other in run.stages.commands if run.stages.reads_key(other, key)]
            do = f"{', '.join(others)} {'do' if len(others) > 1 else 'does'}" if others else "no command of a run does"
            raise UserError(f"--set {key}: {verb} does not read it; {do}")

    if verb in ALL_OTHERS and run.directory == run.called:
        for part in parts.values():
            _, key = asked_for(part)
            if key and part.there and part not in needed and part.name not in made:
                given = [text for text in run.overrides if names_key(text.partition("=")[0], key)]
                elsewhere = command(run, verb, given, out=run.called.with_name(f"{run.called.name}-{verb}"))
                trains = part.name.startswith("train/") and verb == "evaluate"
                first = f"{remake_command(run, part.name)} first, or " if trains else ""
                raise UserError(
                    f"--set {key}: {part.name} was made with another one, and would be stale; run {first}{elsewhere},"
                    f" which leaves {run.called} as it is"
                )


def reward_stages(run: RunDirectory) -> list[str]:
    """Return the stages that the reward reads."""
    models = Models(RunData(run))
    try:
        return sources_of([*models.reward_files, *models.group_reward_files])
    except (UserError, OSError):  # the command reports it itself
        return []


def _value(content: Mapping[str, Any], key: str) -> Any:
    value: Any = content
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
