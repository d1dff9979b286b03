"""Staleness of a run's stages; nothing is made, loaded or written.

A stage is stale if it would be made from something else now, or a stage that it reads is stale; the first difference is
the reason. Missing files outside the run make no stage stale; changed logs only with `logs`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from types import MappingProxyType
from typing import Any

from adagrpo.config import Change, changed_settings, read_settings
from adagrpo.config.objective import in_sections
from adagrpo.errors import UserError
from adagrpo.pipeline.directory import RunDirectory, finished_stages, folder_of, label_of, made_from, place_of
from adagrpo.pipeline.make import StageFolder
from adagrpo.pipeline.stage import RUN, Declare, MadeFrom, Part, Read, State, names_key, sources_of
from adagrpo.storage.artifacts import manifest
from adagrpo.storage.hashes import cached_hash
from adagrpo.storage.locks import WORK
from adagrpo.storage.marks import is_marked

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
    """Return the state of every stage that exists or is needed, by name, in execution order.

    Args:
        logs: also check for changed logs, and missing test cases or truth.
        measuring: in a run that continues another one, ignore changed settings of `evaluation` for models whose best
            checkpoint the other run chose.
        more: declarations of stages that the recipe does not need.
    """
    states = _States(run, logs=logs, lenient=measuring and run.source is not None)
    for name, declare in run.stages.declared(run.config, RUN[:-1]).items():
        states.add(name, declare)
    arms = [arm.name for arm in run.config.train.arms if f"train/{arm.name}" in states.parts]
    usable = [arm for arm in arms if states.parts[f"train/{arm}"].usable]  # `report/paired` has only these
    evaluated = [run.stages.declared(run.config, ["evaluate"], names) for names in (None, usable)]
    for name, declare in {**evaluated[0], **evaluated[1], **more}.items():
        states.add(name, declare)
    for name in finished_stages(run, "*", "*/*", "*/*/*"):
        if name not in states.parts and not name.startswith(WORK):
            states.add(name)
    if logs:
        states.check_evaluation_files()
    return states.parts


def states_of(run: RunDirectory, stages: Mapping[str, Declare]) -> dict[str, Part]:
    """Return the state of some stages alone, given in execution order."""
    states = _States(run, logs=False, lenient=False)
    for name, declare in stages.items():
        states.add(name, declare)
    return states.parts


def upstream(parts: Mapping[str, Part], names: Iterable[str]) -> list[str]:
    """Return stages with all their inputs, in execution order."""
    wanted, found = list(names), set()
    while wanted:
        name = wanted.pop()
        if name in parts and name not in found:
            found.add(name)
            wanted += parts[name].sources
    return [name for name in parts if name in found]


def made_again(run: RunDirectory) -> list[Part]:
    """Return finished stages that `adagrpo run` rebuilds for a changed setting, file or log, without downstream ones.

    Omits page-only stages if just the set of arms has changed.
    """
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
    shared = {name for name, row in rows.items() if row is not None and row.shared and row.command not in commands}
    read = {"reranking"} if run.config.reward.in_list_stds else set[str]()  # every fit logs rewards in these units
    for declare in wanted.values() if shared else ():
        try:
            read.update(sources_of(declare(run).reads))
        except (UserError, OSError):  # reported when it is made
            continue
    return {name: declare for name, declare in wanted.items() if name not in shared - read}


def left_out_arms(run: RunDirectory) -> dict[str, str]:
    """Return trained arms that do not match the current settings and files, and why."""
    parts = parts_of(run, measuring=True)
    arms = {name.removeprefix("train/"): part for name, part in parts.items() if name.startswith("train/")}
    return {name: part.why for name, part in arms.items() if part.there and not part.usable}


def finished_arms(run: RunDirectory) -> list[str]:
    """Return the configured arms that are trained and up to date."""
    usable = {name for name, part in parts_of(run, measuring=True).items() if part.usable}
    return [arm.name for arm in run.config.train.arms if f"train/{arm.name}" in usable]


class _States:
    def __init__(self, run: RunDirectory, *, logs: bool, lenient: bool) -> None:
        self.run, self.parts = run, dict[str, Part]()
        self._logs, self._lenient = logs, lenient
        self._read_manifest = cache(manifest)  # read for every file of a folder

    def add(self, name: str, declare: Declare | None = None) -> None:
        """Add a stage's part, after those of the stages that it reads."""
        run, row = self.run, self.run.stages.row(name)
        content, damage = self._manifest(name)
        kept, now = MadeFrom.of(content or {}, run.stages), None
        with suppress(UserError, OSError):  # reported when it is made
            if declare is not None:
                now = made_from(run, declare(run), self._hash)
        if now is None and content is None:
            if damage or declare is not None:
                self.parts[name] = Part(name, "damaged" if damage else "missing", damage, there=False)
            return
        if now is None:  # the recipe does not declare it: what its manifest names is read again
            if row is not None and kept is not None and (why := row.why_unused(name, run.config)):
                self.parts[name] = Part(name, "unused", why)
                return
            now = None if row is None or kept is None else self._again(kept)
            if now is None:
                self.parts[name] = Part(name, "unused" if row is None else "stale", ANOTHER_VERSION)
                return
        self.parts[name] = self._part(name, kept, now, damage, there=content is not None)

    def check_evaluation_files(self) -> None:
        for name, part in list(self.parts.items()):
            row, folder = self.run.stages.row(name), folder_of(self.run, name)
            if row is None or not row.evaluation_only or not part.there:
                continue
            files = (self._read_manifest(folder) or {"files": ()})["files"]
            gone = next((folder / file for file in files if not (folder / file).exists()), None)
            if gone is not None:
                why = f"{gone}: missing; put it back, or delete {folder} to have it made again"
                self.parts[name] = replace(part, state="damaged", why=why)

    def _hash(self, run: RunDirectory, read: Read) -> str:
        """Return a file's hash, from its stage's manifest if possible; `GONE` if missing."""
        path = place_of(run, read)
        if not path.is_file():
            return GONE
        for folder in path.parents:
            try:
                content = self._read_manifest(folder)
            except UserError:  # reported by its own part
                return GONE
            if content is not None:
                entry = content["files"].get(path.relative_to(folder).as_posix())
                return GONE if entry is None else str(entry["sha256"])
            if is_marked(folder):
                break
        return cached_hash(path)

    def _again(self, kept: MadeFrom) -> MadeFrom | None:
        """Return what a stage of these keys and files would be made from now; None if a key is no more."""
        try:
            settings = read_settings(self.run.config, kept.keys, kept.but)
        except (KeyError, ValueError):
            return None
        named = sorted(kept.reads, key=lambda read: label_of(self.run, read))
        reads = {read: self._hash(self.run, read) for read in named}
        files = {label: self._hash(self.run, self.run.data / label) for label in kept.files}
        return kept._replace(settings=settings, reads=reads, files=files)

    def _manifest(self, name: str) -> tuple[dict[str, Any] | None, str]:
        """Return a stage's manifest, and its defect in words."""
        folder, row = folder_of(self.run, name), self.run.stages.row(name)
        try:
            found = self._read_manifest(folder)
        except UserError as error:
            return None, str(error)
        evaluation_only = () if row is None else row.evaluation_only
        missing = [file for file in (found or {"files": ()})["files"] if not (folder / file).exists()]
        gone = next((file for file in missing if not file.startswith(evaluation_only)), None)
        if gone is not None:
            return None, f"{folder / gone}: missing; delete {folder} to have it made again"
        if self._logs and found is not None:  # other commands check the files that they read
            for file, entry in found["files"].items():
                if file not in missing and (folder / file).stat().st_size != entry["size"]:
                    return None, f"{folder / file}: of another size than it was made; delete {folder} to make it again"
        return found, ""

    def _part(self, name: str, kept: MadeFrom | None, now: MadeFrom, damage: str, *, there: bool) -> Part:
        sources = tuple(source for source in now.sources if source != name)
        attempt = StageFolder(self.run.directory, name).begun_for()
        if not there:
            state: State = "damaged" if damage else "missing" if attempt is None else "interrupted"
            return Part(name, state, damage, (), sources, there=False)
        if kept is None:
            return Part(name, "stale", ANOTHER_VERSION, (), sources)
        # a file outside the run that is gone is as it was, and the logs are read once, when they are prepared
        once = {label for label, digest in now.files.items() if digest == GONE or name == "prepare"}
        read_once = {label: kept.files.get(label, UNKNOWN) for label in once}
        outdated = self._changed_logs(now, read_once) if self._logs and name == "prepare" else ""
        now, chosen_by = self._leniently(name, kept, now._replace(files={**now.files, **read_once}))
        before = [self.parts[source] for source in sources if source in self.parts]
        missing = next((part for part in before if not part.there), None)
        behind = missing or next((part for part in before if not part.usable), None)
        if missing is None and not now.equals(kept) and UNKNOWN not in read_once.values():
            changes, why = self._differences(kept, now)
            state = "interrupted" if attempt == now.fingerprint(name) else "stale"
            return Part(name, state, why, tuple(changes), sources)
        if behind is not None:
            return Part(name, "stale", f"{behind.name} is {behind.state}", (), sources)
        return Part(name, "done", outdated or chosen_by, (), sources, outdated=bool(outdated))

    def _changed_logs(self, now: MadeFrom, kept: Mapping[str, str]) -> str:
        changed = [label for label in now.files if label in kept and now.files[label] not in (GONE, kept[label])]
        read = [label for label in changed if kept[label] != UNKNOWN]
        if read:
            return f"{', '.join(read)} changed after it was read"
        return f"made without {', '.join(changed)}" if changed else ""

    def _leniently(self, name: str, kept: MadeFrom, now: MadeFrom) -> tuple[MadeFrom, str]:
        """Return what to compare a stage with, and a note if settings of `evaluation` are ignored."""
        row = self.run.stages.row(name)
        if not self._lenient or row is None or not row.selects:
            return now, ""
        settings = {key: value for key, value in now.settings.items() if key.split(".")[0] != "evaluation"}
        settings |= {key: value for key, value in kept.settings.items() if key.split(".")[0] == "evaluation"}
        changes = changed_settings(self.run.config, settings, now.settings)
        chosen = "weight" if name == "reranking" else "best checkpoint"
        said = "".join(f"its {chosen} was chosen with {one.key}={_text(one.before)}" for one in changes[:1])
        return now._replace(settings=settings), said

    def _differences(self, kept: MadeFrom, now: MadeFrom) -> tuple[list[Change], str]:
        changes = changed_settings(self.run.config, kept.settings, now.settings)
        if all(isinstance(also, dict) and "arm" in also for also in (kept.also, now.also)):
            arms = ({"objective": in_sections(also["arm"])} for also in (kept.also, now.also))
            changes += changed_settings(self.run.config, *arms)
        if changes:
            first, more = changes[0], len(changes) - 1
            says = "run.yaml" if self.run.described else "the recipe"
            if any(names_key(first.key, text.partition("=")[0]) for text in self.run.overrides):
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
