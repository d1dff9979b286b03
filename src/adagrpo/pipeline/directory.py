"""A run's folder and settings, and verified reads of its files, by manifest or, for files of no stage, run.yaml.

Files missing from a continued run are read from its source run. Of several processes the first locks and writes.
"""

from __future__ import annotations

import copy
import json
import os
import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import Any, Self

import torch

from adagrpo.config import Config, Settings, as_overrides, read_settings, resolve_config
from adagrpo.config.objective import in_section
from adagrpo.console import Console, Silent, StderrConsole
from adagrpo.errors import UserError
from adagrpo.lists.names import parse_list
from adagrpo.pipeline.description import (
    DESCRIPTION,
    OUTPUTS,
    data_settings,
    described_config,
    hash_of_output,
    read_description,
)
from adagrpo.pipeline.json_files import EVENTS, read_events, read_json
from adagrpo.pipeline.stage import Declaration, MadeFrom, Read, StageTable
from adagrpo.storage.artifacts import manifest, verify_file
from adagrpo.storage.hashes import cached_hash, checked_line
from adagrpo.storage.locks import lock_folder
from adagrpo.storage.marks import MARK, Kind, check_kind, is_marked, read_mark
from adagrpo.storage.writing import MANIFEST, naming
from adagrpo.trainer.processes import processes

ALWAYS = ("name", "threads")  # settings accepted by every command, without effect on results
REFIT, MEASURED = "refit", "measured"  # folder of a refit; in it, the name of the run that it is of
REFRESH, BEGUN = "refresh", "begun"  # folder of refreshes; in one, the name of the fit that it goes on from


class RunDirectory(ABC):
    """A run's folder, settings and files; `adagrpo.pipeline.run.Run` adds the commands."""

    def __init__(
        self,
        directory: Path,  # created at the first write
        config: Config,
        data: Path,  # base folder of the recipe's relative paths
        console: Console | None = None,
        code: Path | None = None,  # folder of the recipe's modules; None is the working directory
        source: Path | None = None,  # a read-only run for missing stages
        measured: RunDirectory | None = None,  # likewise, of a refit; its files are also `measured/<path>`
        begun: RunDirectory | None = None,  # whose weights a refresh goes on from; its files are `begun/<path>`
    ) -> None:
        self._kind: Kind = "run" if measured is None else "refit" if begun is None else "refresh"
        check_kind(directory, self._kind)
        for arm in config.train.arms:
            if parse_list(arm.name).policy is None:
                raise UserError(f"train.arms: '{arm.name}' is the name of a list; take another")
        self.directory, self.config, self.data = directory, config, data
        self.source, self.measured, self.begun = source, measured, begun
        self.called = directory  # the path as given by the user
        self.overrides: tuple[str, ...] = ()  # this command's overrides of run.yaml
        self.catalog = 0  # catalogue version to evaluate, see `adagrpo.pipeline.versions`
        self.described: Config | None = None  # content of run.yaml; None unless opened
        self.made: list[str] = []  # stages built, not skipped
        self.code = (code or Path()).resolve()
        self.console: Console = (console if processes().is_main_process else None) or Silent()
        self._locked, self._followed = False, True  # whether other processes follow, or wait for the first
        self._noted: dict[str, Any] = {}  # entries of run.yaml, kept when the command succeeds
        self._ready: set[str] = set()  # shared stages known to be up to date in this command
        self._served: dict[tuple[Any, ...], Any] = {}  # recommenders of `recommend`, and what they were made from
        if config.threads is not None:
            torch.set_num_threads(config.threads)

    @classmethod
    def open(
        cls,
        directory: str | Path,
        settings: Settings = (),
        console: Console | None = None,
        out: str | Path | None = None,
        *,
        progress: bool = False,
    ) -> Self:
        """Open an existing run without writing.

        Args:
            settings: like `--set`, `{"reward.kind": "noise"}`; kept in run.yaml when a command succeeds.
            out: another run directory, new or begun this way, for all output.

        Raises:
            UserError: a run is missing or damaged, a setting is invalid, or `out` does not continue this run.
        """
        directory, out = Path(directory), None if out is None else Path(out)
        overrides = as_overrides(settings)
        if not is_marked(directory):
            raise UserError(
                f"{directory}: not a run (it has no file {MARK}); make one with `adagrpo run` or `adagrpo prepare`"
            )
        check_kind(directory, "run", "--run")
        marked = read_mark(directory).get("source")
        source, called = Path(marked) if marked is not None else None, directory
        if source is not None and not is_marked(source):
            raise UserError(
                f"{directory}: reads what it lacks from {source}, where there is no run any more; put it back"
            )
        if out is not None and out.resolve() != directory.resolve():
            check_kind(out, "run")
            if source is not None:
                raise UserError(f"--out: {directory} goes on from {source} itself; work in it, or go on from that one")
            own = read_mark(out).get("source") if is_marked(out) else str(directory.resolve())
            if own != str(directory.resolve()):
                what = "a run of its own" if own is None else f"what goes on from {own}"
                raise UserError(f"--out: {out} is {what}, and not from {directory}; take a new folder")
            directory, source = out, directory.resolve()
        described = next((root for root in (directory, source) if root and (root / DESCRIPTION).is_file()), directory)
        content = read_description(described)
        try:
            (before, unread), data = described_config(content), Path(content["data_directory"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{described / DESCRIPTION}: damaged; carry out `adagrpo run` again") from error
        as_described = resolve_config(copy.deepcopy(before), (), str(described / DESCRIPTION))
        # any error is now in the overrides
        config = resolve_config(before, overrides, "--set") if overrides else as_described
        code = Path(content["code_directory"]) if "code_directory" in content else None
        run = cls(directory, config, data, StderrConsole() if progress else console, code, source)
        run.described, run.catalog = as_described, content.get("catalog", 0)
        run.called, run.overrides = called, tuple(map(in_section, overrides))
        if unread:
            said = f"objective.{', objective.'.join(unread)}: not registered here and not in use, so not read"
            run.console.note(f"note: {described / DESCRIPTION}: {said}")
        return run

    @property
    @abstractmethod
    def stages(self) -> StageTable:
        """The table of stages."""

    def path(self, *parts: str) -> Path:
        """Return a path in the run, or else in its source."""
        own = self.directory.joinpath(*parts)
        if self.measured is not None:
            if parts[0] == MEASURED:
                return self.measured.path(*parts[1:])
            if parts[0] == BEGUN and self.begun is not None:
                return self.begun.path(*parts[1:])
            return own if os.path.lexists(own) else self.measured.path(*parts)
        if self.source is not None and not os.path.lexists(own) and self.source.joinpath(*parts).exists():
            return self.source.joinpath(*parts)
        return own

    def checked(self, *parts: str) -> Path:
        """Return a file's path; UserError if missing or changed."""
        path = self.path(*parts)
        hash_of(self, path)
        return path

    def content(self, *parts: str) -> dict[str, Any]:
        """Return the object of a `checked` JSON file."""
        return read_json(self.checked(*parts))

    def find(self, *parts: str) -> Path | None:
        """Return `checked`; None if missing."""
        path = self.path(*parts)
        if not path.is_file():
            return None
        if path.name == DESCRIPTION:
            read_description(path.parent)
        return self.checked(*parts)


def find_content(run: RunDirectory, *parts: str) -> dict[str, Any] | None:
    """Return the object of a `checked` JSON file; None if missing."""
    path = run.find(*parts)
    return None if path is None else read_json(path)


@contextmanager
def locked(run: RunDirectory) -> Iterator[None]:
    """Lock the directory against other processes; reentrant. UserError if it is locked or not writable."""
    if run._locked or not processes().is_main_process:
        yield
        return
    facts = {} if run.source is None else {"source": str(run.source)}
    with lock_folder(run.directory, run._kind, **facts):
        run._locked = True
        try:
            log = run.directory / EVENTS
            content = log.read_bytes() if log.is_file() and not log.is_symlink() else b""
            if content and not content.endswith(b"\n"):  # a crash left half a line
                os.truncate(log, content.rfind(b"\n") + 1)
            yield
        finally:
            run._locked = False


def roots(run: RunDirectory) -> list[Path]:
    """Return the folders to read from: any source run's, then the run's own."""
    others = [run.source] if run.measured is None else roots(run.measured)
    return [root for root in (*others, run.directory) if root is not None]


def folder_of(run: RunDirectory, stage: str) -> Path:
    """Return a finished stage's folder, possibly with only a nested stage."""
    return run.path(*stage.split("/"), MANIFEST).parent


def path_of(run: RunDirectory, read: Read) -> Path:
    """Return the path of what a stage reads."""
    return run.path(*read.replace(":", "/", 1).split("/")) if isinstance(read, str) else read


def read_of(run: RunDirectory, path: Path) -> Read:
    """Return how a stage reads a file, by name if from this run's stages."""
    root = next((root for root in reversed(roots(run)) if path.is_relative_to(root)), None)
    return path if root is None else run.stages.named(path.relative_to(root).as_posix()) or path


def finished_stages(run: RunDirectory, *patterns: str) -> list[str]:
    """Return finished stages that match patterns such as `train/*`."""
    paths = ((root, path) for root in roots(run) for pattern in patterns for path in root.glob(f"{pattern}/{MANIFEST}"))
    names = {path.parent.relative_to(root).as_posix() for root, path in paths}
    return sorted(name for name in names if not name.startswith((f"{REFIT}/", f"{REFRESH}/")))


def trained_arms(run: RunDirectory) -> list[str]:
    """Return the names of trained arms."""
    return [name.removeprefix("train/") for name in finished_stages(run, "train/*")]


def weights_of(arm: str, checkpoint: str = "best") -> tuple[str, ...]:
    """Return an arm's or `sft`'s folder of weights."""
    return (*(("sft",) if arm == "sft" else ("train", arm)), checkpoint)


def model_of(arm: str, checkpoint: str = "best") -> str:
    """Return an arm's or `sft`'s weights, as stages read them."""
    return f"{'sft' if arm == 'sft' else f'train/{arm}'}:{checkpoint}/model.safetensors"


def checked_stage(run: RunDirectory, name: str, *, but: Collection[str] = ()) -> Path:
    """Return a finished stage's folder after verifying its files, except `but`."""
    folder = folder_of(run, name)
    content = manifest(folder)
    if content is None:
        raise UserError(f"{folder}: missing; run {remake_command(run, name)} first")
    for file in content["files"].keys() - set(but):
        verify_file(folder, file, content)
    return folder


def label_of(run: RunDirectory, read: Read) -> str:
    """Return what a stage reads as a path, wherever run and data are."""
    if isinstance(read, str):
        return read.replace(":", "/", 1)
    parents = (parent for parent in (run.data, run.data.resolve()) if read.is_relative_to(parent))
    return next((read.relative_to(parent).as_posix() for parent in parents), read.name)  # run.yaml has the last one


def by_label(run: RunDirectory, reads: Iterable[Read]) -> dict[str, Read]:
    """Return reads by label; repeated labels get a number."""
    found: dict[str, Read] = {}
    for read in dict.fromkeys(reads):
        label, count = label_of(run, read), 1
        while label in found:
            count += 1
            label = f"{label_of(run, read)} ({count})"
        found[label] = read
    return found


def hashes_of(run: RunDirectory, reads: Iterable[Read]) -> dict[str, str]:
    """Return the sha256 of what a stage reads, by label."""
    return {label: hash_of(run, read) for label, read in by_label(run, reads).items()}


def kept(run: RunDirectory, stage: str) -> MadeFrom | None:
    """Return what a finished stage was made from; None if missing or of an unknown version."""
    return MadeFrom.of(manifest(folder_of(run, stage)) or {}, run.stages)


def stage_over(path: Path) -> tuple[Path, Mapping[str, Any]] | None:
    """Return folder and manifest of the stage that a file is in, or None."""
    root = next(filter(is_marked, path.parents), path.parent)
    folders = takewhile(lambda folder: folder != root, path.parents)
    return next(((folder, content) for folder in folders if (content := manifest(folder)) is not None), None)


def hash_of(run: RunDirectory, read: Read) -> str:
    """Return a file's sha256; UserError if it is missing, or belongs to a run and was changed."""
    path = path_of(run, read)
    if not path.is_file():
        root = next((root for root in reversed(roots(run)) if path.is_relative_to(root)), None)
        if root is None:
            raise UserError(f"{path}: no such file; check the recipe and --data")
        file = path.relative_to(root).as_posix()
        stage, _, inner = (read if isinstance(read, str) else run.stages.named(file) or file).partition(":")
        content = manifest(folder_of(run, stage))
        if content is not None and inner in content["files"]:  # its command would not make the file again
            verify_file(folder_of(run, stage), inner, content)
        raise UserError(f"{path}: missing; run {remake_command(run, stage)} first")
    if (found := stage_over(path)) is not None:
        return verify_file(found[0], path.relative_to(found[0]).as_posix(), found[1])
    return hash_of_output(path.parent, path.name) if is_marked(path.parent) else cached_hash(path)


def made_from(
    run: RunDirectory, declared: Declaration, hashed: Callable[[RunDirectory, Read], str] = hash_of
) -> MadeFrom:
    """Return what a stage would be made from now."""
    read = read_settings(run.config, declared.settings, declared.but)
    settings, also = json.loads(json.dumps([read, declared.also]))
    labelled = by_label(run, declared.reads)
    digests = {label: hashed(run, one) for label, one in labelled.items()}
    reads = {one: digests[label] for label, one in labelled.items() if isinstance(one, str)}
    files = {label: digests[label] for label, one in labelled.items() if not isinstance(one, str)}
    return MadeFrom(declared.version, settings, also, reads, files, tuple(declared.settings), tuple(declared.but))


def events_of(run: RunDirectory) -> list[dict[str, Any]]:
    """Read events, the source's first: time, stage, event and seconds."""
    return [row for root in roots(run) for row in read_events(root)]


def refuse_without_order(config: Config, command: str) -> None:
    """Refuse next-item prediction on logs without order; suggest `command`."""
    if config.without_order:
        raise UserError(
            "data.split.kind: impressions has no order, so no next item for a policy to learn;"
            f" `{command}` fits and examines the ranker"
        )


def log_event(run: RunDirectory, stage: str, event: str, seconds: float = 0.0) -> None:
    """Log a stage's event, or a sentence about it."""
    if not processes().is_main_process:
        return
    time = datetime.now(UTC).isoformat(timespec="seconds")
    row = {"time": time, "stage": stage, "event": event, "seconds": round(seconds, 3)}
    descriptor = os.open(run.directory / EVENTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    with naming(run.directory / EVENTS), os.fdopen(descriptor, "a", encoding="utf-8") as file:
        file.write(checked_line(row))
    run.console.stage(stage, event, seconds)


# commands for messages; they repeat the user's `--set`, which run.yaml lacks


def command(run: RunDirectory, verb: str, overrides: Iterable[str] = (), *, out: Path | None = None) -> str:
    """Return a command as typed, in backticks."""
    place, data = shlex.quote(str(run.called)), run.config.data
    if verb in ("prepare", "run"):
        recipe = f"`adagrpo run RECIPE --out {place}`"
        if verb == "run" or data.marketplace is not None:
            return recipe
        logs = "LOGS" if data.logs else ""
        logs += " --impressions FILE" if data.impressions is not None else ""
        logs += f" --exposures {shlex.quote(data.exposures.path)}" if data.exposures is not None else ""
        given = "".join(f" --set {key}=..." for key in data_settings(run.config))
        if given:  # otherwise `prepare` would use the defaults
            return f"{recipe} or `adagrpo prepare {logs.strip()} --out {place}{given}`"
        return f"`adagrpo prepare {logs.strip()} --out {place}` or {recipe}"
    words = ["adagrpo", verb, "--run", place, *(() if out is None else ("--out", shlex.quote(str(out))))]
    return f"`{' '.join([*words, *(word for text in overrides for word in ('--set', shlex.quote(text)))])}`"


def remake_command(run: RunDirectory, stage: str) -> str:
    """Return the command that makes a stage or a file of `OUTPUTS` again."""
    if stage.startswith("evaluate/") and "+rerank" in stage:
        return "`adagrpo compare`, which alone re-ranks arms,"
    if stage.startswith("catalogs/"):  # the request is not kept; the latest version itself is stale
        return (
            f"`adagrpo catalog update --run {shlex.quote(str(run.called))} --from 0` with --items or --delist,"
            " or read the catalogue of training with --catalog 0"
        )
    row = run.stages.row(stage)
    made_by = row.command if row is not None else stage.partition("/")[0]
    repeats = row is not None and "decide" in row.also_by  # `decide` makes it too
    if repeats and finished_stages(run, "fuse/*"):
        made_by = "decide"
    if stage in OUTPUTS:
        made_by = "ranker" if run.config.without_order else "evaluate"
    given = [text for text in run.overrides if run.stages.reads_key(made_by, text.partition("=")[0])]
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
