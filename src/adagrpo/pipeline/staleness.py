"""Staleness of a run's stages; nothing is made, loaded or written.

A stage is stale if it would be made from something else now, or a stage that it reads is stale; the first difference is
the reason. Missing files outside the run make no stage stale; changed logs only with `logs`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from adagrpo.config import Change, changed_settings, read_settings
from adagrpo.config.objective import in_sections
from adagrpo.errors import UserError
from adagrpo.pipeline.directory import RunDirectory, finished_stages, folder_of, made_from, path_of, stage_over
from adagrpo.pipeline.make import begun_for
from adagrpo.pipeline.stage import RUN, Declare, MadeFrom, Part, Read, State, names_key, sources_of
from adagrpo.storage.artifacts import manifest
from adagrpo.storage.hashes import cached_hash
from adagrpo.storage.locks import WORK

GONE = "gone"  # instead of a hash
UNKNOWN = "unknown"
ANOTHER_VERSION = "made by another version of this program"


def parts_of(
    run: RunDirectory,
    *,
    logs: bool = False,
    measuring: bool = False,
    more: Mapping[str, Declare] = MappingProxyType({}),
) -> dict[str, Part]:
    """Return the state of existing and needed stages by name, in execution order.

    Args:
        logs: also check for changed logs, and missing test cases or truth.
        measuring: in a run that continues another one, ignore changed settings of `evaluation` for models whose best
            checkpoint the other run chose.
        more: declarations of stages that the recipe does not need.
    """
    parts, lenient = dict[str, Part](), measuring and run.source is not None
    _add(run, parts, run.stages.declared(run.config, RUN[:-1]), logs=logs, lenient=lenient)
    arms = [arm.name for arm in run.config.train.arms if f"train/{arm.name}" in parts]
    usable = [arm for arm in arms if parts[f"train/{arm}"].usable]  # `report/paired` has only these
    evaluated = [run.stages.declared(run.config, ["evaluate"], names) for names in (None, usable)]
    _add(run, parts, {**evaluated[0], **evaluated[1], **more}, logs=logs, lenient=lenient)
    found = finished_stages(run, "*", "*/*", "*/*/*")
    others = {name: None for name in found if name not in parts and not name.startswith(WORK)}
    _add(run, parts, others, logs=logs, lenient=lenient)
    for name, part in [*parts.items()] if logs else ():
        row, folder = run.stages.row(name), folder_of(run, name)
        files = (manifest(folder) or {})["files"] if row and row.evaluation_only and part.there else ()
        gone = next((folder / file for file in files if not (folder / file).exists()), None)
        if gone is not None:
            why = f"{gone}: missing; put it back, or delete {folder} to have it made again"
            parts[name] = replace(part, state="damaged", why=why)
    return parts


def states_of(run: RunDirectory, stages: Mapping[str, Declare]) -> dict[str, Part]:
    """Return the state of some stages alone, given in execution order."""
    parts = dict[str, Part]()
    _add(run, parts, stages, logs=False, lenient=False)
    return parts


def made_again(run: RunDirectory) -> list[Part]:
    """Return finished stages that `adagrpo run` rebuilds for a change; not what follows, nor pages of other arms."""
    parts, wanted = parts_of(run, logs=True), run.stages.declared(run.config)
    silent = {name for name in wanted if (row := run.stages.row(name)) is not None and row.page_only}
    return [
        part
        for name, part in parts.items()
        if (part.outdated or (part.there and part.state == "stale" and name in wanted))
        and (part.changes or name not in silent)
        and all(parts[source].usable for source in part.sources if source in parts)
    ]


def stages_of(run: RunDirectory, commands: Collection[str], arms: Sequence[str] | None = None) -> dict[str, Declare]:
    """Return the stages that commands make; shared ones only if read."""
    wanted = run.stages.declared(run.config, commands, arms)
    rows = {name: run.stages.row(name) for name in wanted}
    shared = {name for name, row in rows.items() if row is not None and row.also_by and row.command not in commands}
    read = {"reranking"} if run.config.reward.in_list_stds else set[str]()  # every fit logs rewards in these units
    for declare in wanted.values() if shared else ():
        with suppress(UserError, OSError):  # reported when it is made
            read.update(sources_of(declare(run).reads))
    return {name: declare for name, declare in wanted.items() if name not in shared - read}


def left_out_arms(run: RunDirectory) -> dict[str, str]:
    """Return trained arms that are out of date, and why."""
    parts = parts_of(run, measuring=True)
    arms = {name.removeprefix("train/"): part for name, part in parts.items() if name.startswith("train/")}
    return {name: part.why for name, part in arms.items() if part.there and not part.usable}


def finished_arms(run: RunDirectory) -> list[str]:
    """Return the configured arms that are trained and up to date."""
    usable = {name for name, part in parts_of(run, measuring=True).items() if part.usable}
    return [arm.name for arm in run.config.train.arms if f"train/{arm.name}" in usable]


def _add(
    run: RunDirectory, parts: dict[str, Part], stages: Mapping[str, Declare | None], *, logs: bool, lenient: bool
) -> None:
    for name, declare in stages.items():
        part = _part(run, parts, name, declare, logs=logs, lenient=lenient)
        if part is not None:
            parts[name] = part


def _hash(run: RunDirectory, read: Read) -> str:
    """Return a file's hash, from its stage's manifest if possible; `GONE` if missing."""
    path = path_of(run, read)
    try:
        found = stage_over(path) if path.is_file() else None
    except UserError:  # reported by its own part
        return GONE
    if found is None:
        return cached_hash(path) if path.is_file() else GONE
    return str(found[1]["files"].get(path.relative_to(found[0]).as_posix(), {"sha256": GONE})["sha256"])


def _part(
    run: RunDirectory,
    parts: Mapping[str, Part],  # of the stages before it
    name: str,
    declare: Declare | None,
    *,
    logs: bool,
    lenient: bool,
) -> Part | None:
    row, folder, content, damage = run.stages.row(name), folder_of(run, name), None, ""
    try:
        content = manifest(folder)
    except UserError as error:
        damage = str(error)
    for file, entry in (content or {"files": {}})["files"].items():
        path = folder / file
        if not path.exists() and not file.startswith(row.evaluation_only if row else ()):
            damage = damage or f"{path}: missing; delete {folder} to have it made again"
        elif logs and path.exists() and path.stat().st_size != entry["size"]:  # else checked where it is read
            damage = damage or f"{path}: of another size than it was made; delete {folder} to make it again"
    content = None if damage else content
    kept, now = MadeFrom.of(content or {}, run.stages), None
    with suppress(UserError, OSError):  # reported when it is made
        now = None if declare is None else made_from(run, declare(run), _hash)
    if now is None and content is None:
        return Part(name, "damaged" if damage else "missing", damage, there=False) if damage or declare else None
    if now is None and row is not None and kept is not None:  # not declared: what its manifest names is read again
        if why := row.why_unused(name, run.config):
            return Part(name, "unused", why)
        with suppress(KeyError, ValueError):  # a key is no more
            now = kept._replace(
                settings=read_settings(run.config, kept.keys, kept.but),
                reads={read: _hash(run, read) for read in sorted(kept.reads, key=lambda read: read.replace(":", "/"))},
                files={label: _hash(run, run.data / label) for label in kept.files},
            )
    if now is None:
        return Part(name, "unused" if row is None else "stale", ANOTHER_VERSION)
    sources = tuple(source for source in now.sources if source != name)
    attempt = begun_for(run.directory, name)
    if content is None:
        state: State = "damaged" if damage else "missing" if attempt is None else "interrupted"
        return Part(name, state, damage, (), sources, there=False)
    if kept is None:
        return Part(name, "stale", ANOTHER_VERSION, (), sources)
    # a file outside the run that is gone is as it was, and the logs are read once, when they are prepared
    files = [label for label, digest in now.files.items() if digest == GONE or name == "prepare"]
    once, note = {label: kept.files.get(label, UNKNOWN) for label in files}, ""
    if logs and name == "prepare":
        changed = [label for label, digest in now.files.items() if digest not in (GONE, once[label])]
        if read := [label for label in changed if once[label] != UNKNOWN]:
            note = f"{', '.join(read)} changed after it was read"
        elif changed:
            note = f"made without {', '.join(changed)}"
    outdated = bool(note)
    now = now._replace(files={**now.files, **once})
    if lenient and row is not None and row.selects:
        settings = {key: value for key, value in now.settings.items() if key.split(".")[0] != "evaluation"}
        settings |= {key: value for key, value in kept.settings.items() if key.split(".")[0] == "evaluation"}
        for one in changed_settings(run.config, settings, now.settings)[:1]:
            chosen = "weight" if name == "reranking" else "best checkpoint"
            note = note or f"its {chosen} was chosen with {one.key}={_text(one.before)}"
        now = now._replace(settings=settings)
    behind = [parts[source] for source in sources if source in parts and not parts[source].usable]
    behind.sort(key=lambda part: part.there)  # one that is missing first
    if not (behind and not behind[0].there) and not now.equals(kept) and UNKNOWN not in once.values():
        changes, why = _differences(run, kept, now)
        state = "interrupted" if attempt == now.fingerprint(name) else "stale"
        return Part(name, state, why, tuple(changes), sources)
    if behind:
        return Part(name, "stale", f"{behind[0].name} is {behind[0].state}", (), sources)
    return Part(name, "done", note, (), sources, outdated=outdated)


def _differences(run: RunDirectory, kept: MadeFrom, now: MadeFrom) -> tuple[list[Change], str]:
    changes = changed_settings(run.config, kept.settings, now.settings)
    if all(isinstance(also, dict) and "arm" in also for also in (kept.also, now.also)):
        changes += changed_settings(run.config, *({"objective": in_sections(one.also["arm"])} for one in (kept, now)))
    if changes:
        first, more = changes[0], len(changes) - 1
        says = "run.yaml" if run.described else "the recipe"
        if any(names_key(first.key, text.partition("=")[0]) for text in run.overrides):
            says = "--set"
        others = f", and {more} other setting{'s' if more > 1 else ''}" if more else ""
        return changes, f"made with {first.key}={_text(first.before)}{others}, {says} says {_text(first.now)}"
    for label, digest in now.hashes.items():
        shown = label.replace(":", "/", 1) if label in now.reads else label
        if label not in kept.hashes:
            return [], f"made without {shown}"
        if digest == GONE:
            return [], f"{shown} is gone"
        if digest != kept.hashes[label]:
            place = "is there" if label in now.reads else "the file is"
            return [], f"made from another {shown} than {place} now"
    without = next((label for label in kept.hashes if label not in now.hashes), None)
    return [], f"made from {without.replace(':', '/', 1)}" if without else ANOTHER_VERSION


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
