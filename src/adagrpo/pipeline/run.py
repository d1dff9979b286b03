"""A run directory: which stages are done, from what they were made, and the log of events.

A run is marked as one (`adagrpo.storage.marks`); a folder that holds anything else is refused, untouched. A stage is a
folder. It is made in `.work/<stage>` and renamed into place when whole, so what a reader finds under the stage's name
is finished. Its manifest carries a fingerprint: the hash of the settings that the stage declares to read, of the files
it reads, and of the number of its schema. A stage whose fingerprint is unchanged is skipped; one that was interrupted
goes on from what its work folder holds, if that was begun under the same fingerprint. Only files of names in `WRITTEN`
or in a manifest are ever removed.

Whoever reads a file of a run asks `Run.checked` for it, which holds it against its manifest or, for the files that
belong to no stage, against the hash in run.yaml.

A run may go on from another one that it never writes to: what it lacks is read there (`adagrpo evaluate --out`).

Where several processes were launched, the first one alone holds the lock and writes; the others take part in the stages
that fit a model and wait for the end of every other one, see `Run.stage`.
"""

from __future__ import annotations

import copy
import os
import platform
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch

from adagrpo import __version__
from adagrpo.config import Config, dump_config, read_settings, resolve_config
from adagrpo.config.reward import RewardOptions
from adagrpo.errors import UserError
from adagrpo.pipeline.description import DESCRIPTION, hash_of_output, outputs, read_description, write_description
from adagrpo.pipeline.written import is_written
from adagrpo.storage.artifacts import (
    MANIFEST,
    cached_hash,
    check_replaceable,
    checked_line,
    foreign_files,
    hash_json,
    make_folder,
    manifest,
    naming,
    publish,
    read_checked_lines,
    remove,
    remove_artifact,
    seal,
    verify,
    verify_file,
    write_file,
)
from adagrpo.storage.locks import WORK, lock_folder
from adagrpo.storage.marks import MARK, check_kind, is_marked, read_mark
from adagrpo.trainer.processes import processes

__all__ = ["EVENTS", "Console", "Run", "Silent"]

EVENTS = "events.jsonl"


BUILD, DONE = "build", "done"  # what the first process tells those that follow it through a stage


class Console(Protocol):
    """Where progress is shown. Nothing that a caller reads back goes through it."""

    def stage(self, name: str, event: str, seconds: float) -> None:
        """A stage starts, ends or is skipped."""
        ...

    def progress(self, label: str, done: int, total: int, values: Mapping[str, float]) -> None:
        """Work within a stage went on."""
        ...

    def note(self, text: str) -> None:
        """Something is worth a line."""
        ...


class Silent:
    """Shows nothing."""

    def stage(self, name: str, event: str, seconds: float) -> None:
        """Nothing."""

    def progress(self, label: str, done: int, total: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


class Run:
    """One run directory."""

    def __init__(
        self,
        directory: Path,
        config: Config,
        data: Path,
        console: Console | None = None,
        code: Path | None = None,
        source: Path | None = None,
    ) -> None:
        """Look at a run directory; it is made, and marked as a run, when something is first written into it.

        Args:
            directory: of the run.
            config: resolved.
            data: the folder that the recipe's relative paths are in.
            console: where progress is shown.
            code: the folder in which the modules of a recipe are looked for; None is the working directory.
            source: another run, from which this one reads what it lacks; nothing is written there.

        Raises:
            UserError: the directory holds something else than a run.
        """
        check_kind(directory, "run")
        self.directory, self.config, self.data, self.source = directory, config, data, source
        self.code = (code or Path()).resolve()
        self.console: Console = console or Silent()
        self._locked = False
        self.processes, self.followed = processes(), True
        if not self.processes.is_main_process:
            self.console = Silent()
        if config.threads is not None:
            torch.set_num_threads(config.threads)

    @classmethod
    def open(
        cls,
        directory: Path,
        overrides: Sequence[str] = (),
        console: Console | None = None,
        out: Path | None = None,
    ) -> Run:
        """Open an existing run; nothing is written, unless its configuration is changed.

        Args:
            directory: of the run.
            overrides: `a.b=c` changes of the configuration, see `adagrpo.config.load_config`; they are written to
                run.yaml, so that the stages after this one go by them too.
            console: where progress is shown.
            out: another run directory, new or begun earlier in this way, for all that is written from here on.

        Raises:
            UserError: there is no run, or its run.yaml is damaged.
        """
        if not is_marked(directory):
            raise UserError(
                f"{directory}: not a run (it has no file {MARK}); make one with `adagrpo run` or `adagrpo prepare`"
            )
        check_kind(directory, "run", "--run")
        marked = read_mark(directory).get("source")
        source = Path(marked) if marked is not None else None
        if out is not None and out.resolve() != directory.resolve():
            check_kind(out, "run")
            directory, source = out, directory.resolve()
        described = next((root for root in (directory, source) if root and (root / DESCRIPTION).is_file()), directory)
        content = read_description(described)
        try:
            before, data = content["config"], Path(content["data_directory"])
            code = Path(content["code_directory"]) if "code_directory" in content else None
        except (KeyError, TypeError) as error:
            raise UserError(f"{described / DESCRIPTION}: damaged; carry out `adagrpo run` again") from error
        config = resolve_config(copy.deepcopy(before), overrides, str(described / DESCRIPTION))
        run = cls(directory, config, data, console, code, source)
        if dump_config(config) != before:
            with run.locked():
                run.write_description(content["data"])
        return run

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of the run directory while the block lasts; blocks of the same run may nest.

        The directory is made and marked if need be.

        Raises:
            UserError: another process is at work here; its id is named. Or the directory cannot be written.
        """
        if self._locked or not self.processes.is_main_process:
            yield
            return
        facts = {} if self.source is None else {"source": str(self.source)}
        with lock_folder(self.directory, "run", **facts):
            self._locked = True
            try:
                _cut_half_line(self.directory / EVENTS)
                yield
            finally:
                self._locked = False

    @property
    def config_hash(self) -> str:
        """Hash of the whole resolved configuration."""
        return hash_json(dump_config(self.config))

    def path(self, *parts: str) -> Path:
        """Where something of the run lies or is to lie: in its own directory, or where it alone is, in its source."""
        own = self.directory.joinpath(*parts)
        if self.source is not None and not os.path.lexists(own) and self.source.joinpath(*parts).exists():
            return self.source.joinpath(*parts)
        return own

    def checked(self, *parts: str) -> Path:
        """A file of the run that is as it was written.

        Raises:
            UserError: it is missing or was changed after it was made; it is named.
        """
        path = self.path(*parts)
        self.hash_input(path)
        return path

    def find(self, *parts: str) -> Path | None:
        """`checked`, or None where there is no such file."""
        path = self.path(*parts)
        if path.name == DESCRIPTION and path.is_file():
            read_description(path.parent)
        return self.checked(*parts) if path.is_file() else None

    def checked_stage(self, name: str, *, but: Collection[str] = ()) -> Path:
        """The folder of a finished stage whose files, but for some, are all as they were written.

        Raises:
            UserError: the stage is missing, or a file of it was changed after it was made; it is named.
        """
        folder = self.path(*name.split("/"))
        content = manifest(folder)
        if content is None:
            raise UserError(f"{folder}: missing; {self._how_to_make(folder)}")
        for file in content["files"].keys() - set(but):
            verify_file(folder, file, content)
        return folder

    def write_description(self, data_files: Mapping[str, str]) -> None:
        """Write run.yaml: the resolved configuration, what each arm is trained by, versions, data hashes, threads."""
        if not self.processes.is_main_process:
            return
        packages = ("torch", "numpy", "accelerate", "polars", "scipy", "safetensors")
        content = {
            "config": dump_config(self.config),
            "arms": self.config.settings_of_arms(),
            "config_hash": self.config_hash,
            "data_directory": str(self.data.resolve()),
            "data": dict(data_files),
            "threads": torch.get_num_threads(),
            "versions": {"adagrpo": __version__, "python": platform.python_version()}
            | {name: version(name) for name in packages},
        }
        if _runs_code(self.config.reward):
            content["code_directory"] = str(self.code)
        with self.locked():
            with suppress(
                UserError
            ):  # a damaged one is replaced, and what it said of other files is not known any more
                content |= {"outputs": known} if (known := outputs(self.directory)) else {}
            write_description(self.directory, content)

    def record(self, key: str, value: Any) -> None:
        """Add to run.yaml what is known only later."""
        if not self.processes.is_main_process:
            return
        with self.locked():
            content = read_description(self.path(DESCRIPTION).parent)
            if content.get(key) != value:
                write_description(self.directory, content | {key: value})

    def write_output(self, name: str, text: str) -> Path:
        """Write a file that belongs to no stage, such as metrics.json, and its hash into run.yaml."""
        with self.locked():
            path = self.directory / name
            write_file(path, text)
            self.record("outputs", outputs(self.directory) | {name: cached_hash(path)})
        return path

    def stage(
        self,
        name: str,
        *,
        inputs: Sequence[Path],
        build: Callable[[Path], None],
        reads: Sequence[str] = (),
        but: Sequence[str] = (),
        also: Any = None,
        schema: int = 1,
        together: bool = False,
    ) -> Path:
        """Make a stage unless it is there already.

        Args:
            name: the stage's folder below the run directory, `/`-separated.
            inputs: files that it reads; those of another stage must be as that stage left them.
            build: writes the stage's files into the folder it is given, which may hold an interrupted attempt.
            reads: keys and sections of the configuration that decide the result, see `adagrpo.config.read_settings`.
            but: keys below those that do not.
            also: JSON-able, what else decides the result: a constant of the code, the fold, the arm.
            schema: of what the stage computes; raised when the same inputs and settings come to give another result.
            together: `build` fits a model and is for all processes; those that do not lead write nothing in it.

        Returns:
            The finished folder.

        Raises:
            UserError: an input is missing, or the stage's files were changed after they were made.
        """
        if not self.processes.is_main_process:
            while self.processes.broadcast() == BUILD:
                build(self._attempt(name)[0])
            return self.path(name)
        with self.locked():
            sources = {self.label(path): self.hash_input(path) for path in inputs}
            settings = read_settings(self.config, reads, but)
            content = {"stage": name, "schema": schema, "settings": settings, "also": also, "inputs": sources}
            fingerprint = hash_json(content)
            there = self.path(name)
            done = manifest(there)
            if done is not None and done["fingerprint"] == fingerprint:
                verify(there)
                self._forget_attempt(name)
                self._event(name, "skip", 0.0)
            else:
                self._check_place(name)
                self._event(name, "start", 0.0)
                started = time.monotonic()
                self._make(name, fingerprint, build, together)
                self._event(name, "end", time.monotonic() - started)
            if self.followed:
                self.processes.broadcast(DONE)
            return self.path(name)

    def trained(self) -> list[str]:
        """The folders of finished arms, by name."""
        roots = [root for root in (self.source, self.directory) if root is not None]
        return sorted({path.parent.name for root in roots for path in root.glob(f"train/*/{MANIFEST}")})

    def events(self) -> list[dict[str, Any]]:
        """What happened to the stages: rows of time, stage, event and seconds, those of the source first.

        Raises:
            UserError: a row is not as it was written.
        """
        logs = [root / EVENTS for root in (self.source, self.directory) if root is not None]
        return [row for log in logs if log.is_file() for row in read_checked_lines(log)]

    def go_on_alone(self) -> None:
        """From here on the first process works without the others, which wait until it is done."""
        self.followed = False

    def _check_place(self, name: str) -> None:
        """Refuse to make a stage where something of somebody else's stands in its place or on the way to it.

        Raises:
            UserError: a link, which is never followed to be written behind, or a file that this program did not make.
        """
        work, _ = self._attempt(name)
        for place in (self.directory / name, work):
            for folder in (place, *place.parents):
                if folder == self.directory:
                    break
                if folder.is_symlink():
                    raise UserError(f"{folder}: is a link; a run is written into folders of its own, move it away")
        check_replaceable(self.directory / name)
        self._check_attempt(work)

    def _check_attempt(self, work: Path) -> None:
        foreign = foreign_files(work, is_written)
        if foreign:
            raise UserError(f"{foreign[0]}: not made by this program; move it away, and carry out the command again")

    def _make(self, name: str, fingerprint: str, build: Callable[[Path], None], together: bool) -> None:
        """Build a stage in its work folder, from where an interrupted attempt stopped, and put it in place."""
        work, marker = self._attempt(name)
        if not (marker.is_file() and marker.read_text(encoding="utf-8") == fingerprint):
            self._forget_attempt(name)
        make_folder(work)
        write_file(marker, fingerprint)
        sealed = manifest(work)
        if sealed is not None and sealed["fingerprint"] != fingerprint:  # what was published before, taken out
            remove_artifact(work)
            make_folder(work)
            sealed = None
        if sealed is None:
            if together:
                self.processes.broadcast(BUILD)
            with naming(work):
                build(work)
            remove(work / "checkpoints", is_written)
            self._check_attempt(work)
            seal(work, kind=name, fingerprint=fingerprint)
        else:  # the attempt ended between sealing and publishing
            verify(work)
        publish(work, self.directory / name)
        marker.unlink()

    def _attempt(self, name: str) -> tuple[Path, Path]:
        """The work folder of a stage, and the file that says for which fingerprint it was begun."""
        work = self.directory / WORK / name.replace("/", ".")
        return work, work.with_name(work.name + ".fingerprint")

    def _forget_attempt(self, name: str) -> None:
        work, marker = self._attempt(name)
        if not os.path.lexists(work) and not os.path.lexists(marker):
            return
        self._check_place(name)
        marker.unlink(missing_ok=True)  # first, so that a half removed folder is never taken for an attempt
        remove(work, is_written)

    def hash_input(self, path: Path) -> str:
        """The sha256 of a file that something reads.

        Raises:
            UserError: no such file, or it is part of a run and was changed after it was made.
        """
        root = next((root for root in (self.directory, self.source) if root and path.is_relative_to(root)), None)
        if not path.is_file():
            if root is not None:
                raise UserError(f"{path}: missing; {self._how_to_make(path)}")
            raise UserError(f"{path}: no such file; check the recipe and --data")
        root = root or next(filter(is_marked, path.parents), None)  # or a file of another run
        if root is None:
            return cached_hash(path)
        if path.parent == root:
            return hash_of_output(root, path.name)
        for folder in path.parents:
            content = None if folder == root else manifest(folder)
            if content is not None:
                return verify_file(folder, path.relative_to(folder).as_posix(), content)
            if folder == root:
                break
        return cached_hash(path)

    def _how_to_make(self, path: Path) -> str:
        root = self.source if self.source is not None and path.is_relative_to(self.source) else self.directory
        verb = path.relative_to(root).parts[0]
        return f"run `adagrpo {verb} --run {root}` first"

    def label(self, path: Path) -> str:
        """A name for an input that does not depend on where the run or the data lie."""
        for root in (self.directory, self.source, self.data):
            if root is not None and path.is_relative_to(root):
                return path.relative_to(root).as_posix()
        return path.name

    def _event(self, stage: str, event: str, seconds: float) -> None:
        row = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "stage": stage,
            "event": event,
            "seconds": round(seconds, 3),
        }
        descriptor = os.open(self.directory / EVENTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        with naming(self.directory / EVENTS), os.fdopen(descriptor, "a", encoding="utf-8") as file:
            file.write(checked_line(row))
        self.console.stage(stage, event, seconds)


def _runs_code(options: RewardOptions) -> bool:
    return options.kind == "callable" or any(map(_runs_code, options.parts))


def _cut_half_line(path: Path) -> None:
    """Drop the end of a log that a crash left without its line break."""
    if path.is_file() and not path.is_symlink():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
