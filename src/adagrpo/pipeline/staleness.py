"""Staleness of a run's stages; nothing is made, loaded or written.

A stage is stale if its manifest differs from its declaration or a stage that it reads is stale. Missing files outside
the run make no stage stale; changed logs only with `logs`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from adagrpo.config import Change, changed_settings, read_settings
from adagrpo.config.objective import in_sections
from adagrpo.errors import UserError
from adagrpo.pipeline.commands import owner
from adagrpo.pipeline.directory import Declare, RunDirectory
from adagrpo.pipeline.stage import MadeFrom, Part, StageFolder, State
from adagrpo.pipeline.stage_table import RUN, declared, names_key, row_of
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
    for name, declare in declared(run.config, [command for command in RUN if command != "evaluate"]).items():
        states.compare(name, declare)
    evaluated = declared(run.config, ["evaluate"])
    arms = {arm.name: states.parts.get(f"train/{arm.name}") for arm in run.config.train.arms}
    usable = [name for name, part in arms.items() if part is not None and part.usable]
    evaluated |= declared(run.config, ["evaluate"], usable)  # `report/paired` has only these
    for name, declare in {**evaluated, **more}.items():
        states.compare(name, declare)
    for name in _finished(run):
        if name not in states.parts:
            states.compare_recorded(name)
    if logs:
        states.check_evaluation_files()
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


def sources_of(run: RunDirectory, paths: Iterable[Path]) -> list[str]:
    """Return the stages that files belong to."""
    return list(dict.fromkeys(name for path in paths if (name := owner(run, path)) is not None))


def made_again(run: RunDirectory) -> list[Part]:
    """Return finished stages that `adagrpo run` rebuilds for a changed setting, file or log, without downstream ones.

    Omits page-only stages if just the set of arms has changed.
    """
    parts, wanted = parts_of(run, logs=True), declared(run.config)
    silent = {name for name in wanted if (row := row_of(name)) is not None and row.page_only}
    return [
        part
        for name, part in parts.items()
        if (part.outdated or (part.there and part.state == "stale" and name in wanted))
        and (part.changes or name not in silent)
        and all(parts[source].usable for source in part.sources if source in parts)
    ]


def stages_of(run: RunDirectory, commands: Collection[str], arms: Sequence[str] | None = None) -> dict[str, Declare]:
    """Return the stages that commands make; shared ones only if read."""
    wanted = declared(run.config, commands, arms)
    shared = {
        name for name in wanted if (row := row_of(name)) is not None and row.shared and row.command not in commands
    }
    read = {"reranking"} if run.config.reward.in_list_stds else set[str]()  # every fit logs rewards in these units
    for declare in wanted.values() if shared else ():
        try:
            read.update(sources_of(run, declare(run).inputs))
        except (UserError, OSError):  # reported when it is made
            continue
    return {name: declare for name, declare in wanted.items() if name not in shared - read}


def left_out_arms(run: RunDirectory) -> dict[str, str]:
    """Return trained arms that do not match the current settings and files, and why."""
    parts = parts_of(run, measuring=True)
    trained = {name.removeprefix("train/"): part for name, part in parts.items() if name.startswith("train/")}
    return {name: part.why for name, part in trained.items() if part.there and not part.usable}


def finished_arms(run: RunDirectory) -> list[str]:
    """Return the configured arms that are trained and up to date."""
    usable = set(run.trained()) - left_out_arms(run).keys()
    return [arm.name for arm in run.config.train.arms if arm.name in usable]


class _States:
    def __init__(self, run: RunDirectory, *, logs: bool, lenient: bool) -> None:
        self.run, self.parts = run, dict[str, Part]()
        self._logs, self._lenient = logs, lenient
        self._read_manifest = cache(manifest)  # read for every file of a folder

    def compare(self, name: str, declare: Declare) -> None:
        try:
            wanted = declare(self.run)
            paths = self.run.labels(wanted.inputs)
            now = wanted.made_from(self.run.config, {label: self._hash(path) for label, path in paths.items()})
        except (UserError, OSError):
            self.compare_recorded(name, missing=True)
            return
        self._compare(name, now, paths)

    def compare_recorded(self, name: str, *, missing: bool = False) -> None:
        was, damage = self._manifest(name)
        if was is None:
            if damage or missing:
                self.parts[name] = Part(name, "damaged" if damage else "missing", damage, there=False)
            return
        row, kept = row_of(name), MadeFrom.of(was)
        if row is None or kept is None:
            self.parts[name] = Part(name, "unused" if row is None else "stale", ANOTHER_VERSION)
            return
        if why := row.why_unused(name, self.run.config):
            self.parts[name] = Part(name, "unused", why)
            return
        try:
            settings = read_settings(self.run.config, kept.reads, kept.but)
        except (KeyError, ValueError):
            self.parts[name] = Part(name, "stale", ANOTHER_VERSION)
            return
        paths = {label: self._place(label) for label in kept.inputs}
        hashes = {label: self._hash(path) for label, path in paths.items()}
        self._compare(name, kept._replace(settings=settings, inputs=hashes), paths)

    def check_evaluation_files(self) -> None:
        for name, part in list(self.parts.items()):
            row, folder = row_of(name), self.run.folder(name)
            if row is None or not row.evaluation_only or not part.there:
                continue
            files = (self._read_manifest(folder) or {"files": ()})["files"]
            gone = next((folder / file for file in files if not (folder / file).exists()), None)
            if gone is not None:
                why = f"{gone}: missing; put it back, or delete {folder} to have it made again"
                self.parts[name] = replace(part, state="damaged", why=why)

    def _hash(self, path: Path) -> str:
        """Return a file's hash, from its stage's manifest if possible; `GONE` if missing."""
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

    def _place(self, label: str) -> Path:
        own = self.run.path(*label.split("/"))
        return own if own.exists() or row_of(str(owner(self.run, own))) is not None else self.run.data / label

    def _manifest(self, name: str) -> tuple[dict[str, Any] | None, str]:
        """Return a stage's manifest, and its defect in words."""
        folder, row = self.run.folder(name), row_of(name)
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

    def _compare(self, name: str, now: MadeFrom, paths: Mapping[str, Path]) -> None:
        owners = {label: owner(self.run, path) for label, path in paths.items()}
        sources = tuple(dict.fromkeys(one for one in owners.values() if one is not None and one != name))
        was, damage = self._manifest(name)
        attempt = StageFolder(self.run.directory, name).begun_for()
        if was is None:
            state: State = "damaged" if damage else "missing" if attempt is None else "interrupted"
            self.parts[name] = Part(name, state, damage, (), sources, there=False)
            return
        kept = MadeFrom.of(was)
        if kept is None:
            self.parts[name] = Part(name, "stale", ANOTHER_VERSION, (), sources)
            return
        read_once = {
            label: kept.inputs.get(label, UNKNOWN)
            for label, own in owners.items()
            if own is None and (now.inputs[label] == GONE or name == "prepare")
        }
        outdated = self._changed_logs(now, read_once) if self._logs and name == "prepare" else ""
        now, chosen_by = self._leniently(name, kept, now._replace(inputs=now.inputs | read_once))
        before = [self.parts[source] for source in sources if source in self.parts]
        behind = next((part for part in before if not part.there), None) or next(
            (part for part in before if not part.usable), None
        )
        if behind is not None and not behind.there:
            found = Part(name, "stale", f"{behind.name} is {behind.state}", (), sources)
        elif was["fingerprint"] != now.fingerprint(name) and UNKNOWN not in read_once.values():
            changes, why = self._differences(kept, now, owners)
            state = "interrupted" if attempt == now.fingerprint(name) else "stale"
            found = Part(name, state, why, tuple(changes), sources)
        elif behind is not None:
            found = Part(name, "stale", f"{behind.name} is {behind.state}", (), sources)
        else:
            found = Part(name, "done", outdated or chosen_by, (), sources, outdated=bool(outdated))
        self.parts[name] = found

    def _changed_logs(self, now: MadeFrom, kept: Mapping[str, str]) -> str:
        changed = [label for label, digest in kept.items() if now.inputs[label] not in (GONE, digest)]
        read = [label for label in changed if kept[label] != UNKNOWN]
        if read:
            return f"{', '.join(read)} changed after it was read"
        return f"made without {', '.join(changed)}" if changed else ""

    def _leniently(self, name: str, kept: MadeFrom, now: MadeFrom) -> tuple[MadeFrom, str]:
        """Return what to compare a stage with, and a note if settings of `evaluation` are ignored."""
        row = row_of(name)
        if not self._lenient or row is None or not row.selects:
            return now, ""
        settings = {key: value for key, value in now.settings.items() if key.split(".")[0] != "evaluation"}
        settings |= {key: value for key, value in kept.settings.items() if key.split(".")[0] == "evaluation"}
        changes = changed_settings(self.run.config, settings, now.settings)
        chosen = "weight" if name == "reranking" else "best checkpoint"
        said = "".join(f"its {chosen} was chosen with {one.key}={_text(one.before)}" for one in changes[:1])
        return now._replace(settings=settings), said

    def _differences(self, kept: MadeFrom, now: MadeFrom, owners: Mapping[str, str | None]) -> tuple[list[Change], str]:
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
        for label, digest in now.inputs.items():
            if label not in kept.inputs:
                return [], f"made without {label}"
            if digest == GONE:
                return [], f"{label} is gone"
            if digest != kept.inputs[label]:
                return [], f"made from another {label} than {'is there' if owners[label] else 'the file is'} now"
        without = next((label for label in kept.inputs if label not in now.inputs), None)
        return [], f"made from {without}" if without else ANOTHER_VERSION


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _finished(run: RunDirectory) -> list[str]:
    return [name for name in run.finished("*", "*/*", "*/*/*") if not name.startswith(WORK)]
