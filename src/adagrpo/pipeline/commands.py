"""Commands and settings for messages. Suggestions repeat the user's `--set`, which run.yaml lacks."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from adagrpo.pipeline.description import OUTPUTS, data_settings
from adagrpo.pipeline.directory import RunDirectory
from adagrpo.pipeline.stage_table import reads_key, row_of

ALWAYS = ("name", "threads")  # accepted by every command, without effect on results


def owner(run: RunDirectory, path: Path) -> str | None:
    """Return the stage of a path; None outside the run."""
    root = run.root_of(path)
    if root is None:
        return None
    names = [path.relative_to(root), *path.relative_to(root).parents][:-1]
    return next((name.as_posix() for name in names if row_of(name.as_posix()) is not None), names[-1].as_posix())


def command(run: RunDirectory, verb: str, overrides: Iterable[str] = (), *, out: Path | None = None) -> str:
    """Return a command as typed, in backticks."""
    place = shlex.quote(str(run.called))
    if verb in ("prepare", "run"):
        recipe = f"`adagrpo run RECIPE --out {place}`"
        simulated = run.config.data.marketplace is not None
        exposures = run.config.data.exposures
        logs = "LOGS" if run.config.data.logs else ""
        logs += " --impressions FILE" if run.config.data.impressions is not None else ""
        logs += f" --exposures {shlex.quote(exposures.path)}" if exposures is not None else ""
        if verb == "run" or simulated:
            return recipe
        given = "".join(f" --set {key}=..." for key in data_settings(run.config))
        if given:  # otherwise `prepare` would use the defaults
            return f"{recipe} or `adagrpo prepare {logs.strip()} --out {place}{given}`"
        return f"`adagrpo prepare {logs.strip()} --out {place}` or {recipe}"
    words = ["adagrpo", verb, "--run", place, *(() if out is None else ("--out", shlex.quote(str(out))))]
    return f"`{' '.join([*words, *(word for text in overrides for word in ('--set', shlex.quote(text)))])}`"


def remake_command(run: RunDirectory, place: Path | str) -> str:
    """Return the command, with its `--set`, that rebuilds the stage of a path."""
    stage = (owner(run, place) or place.name) if isinstance(place, Path) else place
    if stage.startswith("evaluate/") and "+rerank" in stage:
        return "`adagrpo compare`, which alone re-ranks arms,"
    if stage.startswith("catalogs/"):  # the request is not kept; the latest version itself is stale
        return (
            f"`adagrpo catalog update --run {shlex.quote(str(run.called))} --from 0` with --items or --delist,"
            " or read the catalogue of training with --catalog 0"
        )
    row = row_of(stage)
    made_by = row.command if row is not None else stage.partition("/")[0]
    if row is not None and row.shared and run.finished("fuse/*"):  # `decide` repeats its measurements
        made_by = "decide"
    if stage in OUTPUTS:
        made_by = "ranker" if run.config.without_order else "evaluate"
    given = [text for text in run.overrides if reads_key(made_by, text.partition("=")[0])]
    kind, _, name = stage.partition("/")
    if kind == "train" and name and name not in [arm.name for arm in run.config.train.arms]:
        given.append(f"train.arms=[{name}]")
    if name.startswith("fold-") and not any(text.startswith("ranker.folds=") for text in given):
        least = int(name.removeprefix("fold-")) + 1
        given += [f"ranker.folds={max(2, least)}"] if run.config.ranker.folds < least else []
    described = run.described
    if name == "lambdarank" and described is not None and not given and not described.reward.holds("lambdarank"):
        given.append("reward.kind=lambdarank")
    return command(run, "run" if stage == "simulate" else made_by, given)
