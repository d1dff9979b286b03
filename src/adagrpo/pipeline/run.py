"""A run directory: which stages are done, from what they were made, and the log of events.

A stage is a folder. It is made in `.work/<stage>` and renamed into place when whole, so what a reader finds under the
stage's name is finished. Its manifest carries a fingerprint: the hash of the configuration that the stage reads and of
the files it reads. A stage whose fingerprint is unchanged is skipped; one that was interrupted goes on from what its
work folder holds, if that was begun under the same fingerprint.

Where several processes were launched, the first one alone holds the lock and writes; the others take part in the stages
that fit a model and wait for the end of every other one, see `Run.stage`.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml

from adagrpo import __version__
from adagrpo.artifacts import (
    LOCK,
    MANIFEST,
    hash_file,
    hash_json,
    make_folder,
    manifest,
    mend,
    naming,
    publish,
    seal,
    verify,
    write_file,
)
from adagrpo.config import Config, dump_config
from adagrpo.config.reward import RewardOptions
from adagrpo.errors import UserError
from adagrpo.trainer.processes import processes

__all__ = ["Console", "Run", "Silent"]


BUILD, DONE = "build", "done"  # what the first process tells those that follow it through a stage


class Console(Protocol):
    """Where progress is shown. Nothing that a caller reads back goes through it."""

    def stage(self, name: str, event: str, seconds: float) -> None:
        """A stage starts, ends or is skipped."""
        ...

    def progress(self, label: str, done: int, total: int, values: Mapping[str, float]) -> None:
        """Work within a stage went on."""
        ...


class Silent:
    """Shows nothing."""

    def stage(self, name: str, event: str, seconds: float) -> None:
        """Nothing."""

    def progress(self, label: str, done: int, total: int, values: Mapping[str, float]) -> None:
        """Nothing."""


class Run:
    """One run directory."""

    def __init__(
        self, directory: Path, config: Config, data: Path, console: Console | None = None, code: Path | None = None
    ) -> None:
        """Open or make a run directory.

        Args:
            directory: of the run.
            config: resolved.
            data: the folder that the recipe's relative paths are in.
            console: where progress is shown.
            code: the folder in which the modules of a recipe are looked for; None is the working directory.
        """
        self.directory, self.config, self.data = directory, config, data
        self.code = (code or Path()).resolve()
        self.console: Console = console or Silent()
        if directory.exists() and not directory.is_dir():
            raise UserError(f"{directory}: is a file; --out takes a folder")
        directory.mkdir(parents=True, exist_ok=True)
        self._locked = False
        self.processes, self.followed = processes(), True
        if not self.processes.leads:
            self.console = Silent()
        if config.threads is not None:
            torch.set_num_threads(config.threads)

    @classmethod
    def open(cls, directory: Path, overrides: Callable[[Path], Config], console: Console | None = None) -> Run:
        """Open an existing run; `overrides` reads the configuration from a recipe file, as `load_config` does.

        What the overrides change is written to run.yaml, so that the stages after this one go by it too.

        Raises:
            UserError: there is no run, or its run.yaml is damaged.
        """
        path = directory / "run.yaml"
        if not path.is_file():
            raise UserError(f"{directory}: not a run (no run.yaml); make one with `adagrpo run` or `adagrpo prepare`")
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            before, data, hashes = content["config"], Path(content["data_directory"]), dict(content["data"])
            code = Path(content["code_directory"]) if "code_directory" in content else None
        except (yaml.YAMLError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: damaged; carry out `adagrpo run` or `adagrpo prepare` again") from error
        recipe = directory / ".work" / "recipe.yaml"
        if processes().leads:
            write_file(recipe, yaml.safe_dump(before, sort_keys=False))
        processes().tell("written")
        run = cls(directory, overrides(recipe), data, console, code)
        if dump_config(run.config) != before:
            with run.locked():
                run.write_description(hashes)
        return run

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of the run directory while the block lasts; blocks of the same run may nest.

        The operating system drops the lock of a process that ends in whatever way, so a stale one cannot be met.

        Raises:
            UserError: another process is at work here; its id is named.
        """
        if self._locked or not self.processes.leads:
            yield
            return
        with self.path(LOCK).open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                holder = file.read().strip() or "of unknown id"
                raise UserError(f"{self.directory}: process {holder} is at work here; wait until it ends") from error
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            self._locked = True
            try:
                mend(self.directory)
                _cut_half_line(self.path("events.jsonl"))
                yield
            finally:
                self._locked = False

    @property
    def config_hash(self) -> str:
        """Hash of the whole resolved configuration."""
        return hash_json(dump_config(self.config))

    def path(self, *parts: str) -> Path:
        """A path below the run directory."""
        return self.directory.joinpath(*parts)

    def write_description(self, data_files: Mapping[str, str]) -> None:
        """Write run.yaml: the resolved configuration, what each arm is trained by, versions, data hashes, threads."""
        if not self.processes.leads:
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
        write_file(self.path("run.yaml"), yaml.safe_dump(content, sort_keys=False))

    def record(self, key: str, value: Any) -> None:
        """Add to run.yaml what is known only later."""
        if not self.processes.leads:
            return
        with self.locked():
            path = self.path("run.yaml")
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            if content.get(key) != value:
                write_file(path, yaml.safe_dump(content | {key: value}, sort_keys=False))

    def stage(
        self,
        name: str,
        *,
        config: Any,
        inputs: Sequence[Path],
        build: Callable[[Path], None],
        together: bool = False,
    ) -> Path:
        """Make a stage unless it is there already.

        Args:
            name: the stage's folder below the run directory, `/`-separated.
            config: JSON-able, what the stage reads of the configuration.
            inputs: files that it reads; those of another stage must be as that stage left them.
            build: writes the stage's files into the folder it is given, which may hold an interrupted attempt.
            together: `build` fits a model and is for all processes; those that do not lead write nothing in it.

        Returns:
            The finished folder.

        Raises:
            UserError: an input is missing, or the stage's files were changed after they were made.
        """
        if not self.processes.leads:
            while self.processes.tell() == BUILD:
                build(self._attempt(name)[0])
            return self.path(name)
        with self.locked():
            target = self.path(name)
            sources = {self.label(path): self.hash_input(path) for path in inputs}
            fingerprint = hash_json({"stage": name, "config": config, "inputs": sources})
            done = manifest(target)
            if done is not None and done["fingerprint"] == fingerprint:
                verify(target)
                self._forget_attempt(name)
                self._event(name, "skip", 0.0)
            else:
                self._event(name, "start", 0.0)
                started = time.monotonic()
                self._make(name, fingerprint, build, together)
                self._event(name, "end", time.monotonic() - started)
            if self.followed:
                self.processes.tell(DONE)
            return target

    def go_on_alone(self) -> None:
        """From here on the first process works without the others, which wait until it is done."""
        self.followed = False

    def _make(self, name: str, fingerprint: str, build: Callable[[Path], None], together: bool) -> None:
        """Build a stage in its work folder, from where an interrupted attempt stopped, and put it in place."""
        work, marker = self._attempt(name)
        if not (marker.is_file() and marker.read_text(encoding="utf-8") == fingerprint):
            self._forget_attempt(name)
        make_folder(work)
        write_file(marker, fingerprint)
        sealed = manifest(work)
        if sealed is not None and sealed["fingerprint"] != fingerprint:  # what was published before, taken out
            shutil.rmtree(work)
            work.mkdir()
            sealed = None
        if sealed is None:
            if together:
                self.processes.tell(BUILD)
            with naming(work):
                build(work)
            shutil.rmtree(work / "checkpoints", ignore_errors=True)
            seal(work, kind=name, fingerprint=fingerprint)
        else:  # the attempt ended between sealing and publishing
            verify(work)
        publish(work, self.path(name))
        marker.unlink()

    def _attempt(self, name: str) -> tuple[Path, Path]:
        """The work folder of a stage, and the file that says for which fingerprint it was begun."""
        work = self.path(".work", name.replace("/", "."))
        return work, work.with_name(work.name + ".fingerprint")

    def _forget_attempt(self, name: str) -> None:
        work, marker = self._attempt(name)
        marker.unlink(missing_ok=True)  # first, so that a half removed folder is never taken for an attempt
        if work.exists():
            shutil.rmtree(work)

    def verify(self) -> None:
        """Check every file of every finished stage.

        Raises:
            UserError: a file is missing or was changed after it was made; it is named.
        """
        for path in sorted(self.directory.rglob(MANIFEST)):
            if self.path(".work") not in path.parents:
                verify(path.parent)

    def hash_input(self, path: Path) -> str:
        """The sha256 of a file.

        Raises:
            UserError: no such file, or it belongs to a finished stage and was changed after that.
        """
        if not path.is_file():
            if path.is_relative_to(self.directory):
                stage = path.relative_to(self.directory).parts[0]
                raise UserError(f"{path}: missing; run `adagrpo {stage} --run {self.directory}` first")
            raise UserError(f"{path}: no such file; check the recipe and --data")
        for folder in path.parents:
            if folder == self.directory or not folder.is_relative_to(self.directory):
                break
            content = manifest(folder)
            if content is not None:
                entry = content["files"].get(path.relative_to(folder).as_posix())
                if entry is None or hash_file(path) != entry["sha256"]:
                    raise UserError(f"{path}: changed after it was made; delete {folder} to have it made again")
                return str(entry["sha256"])
        return hash_file(path)

    def label(self, path: Path) -> str:
        """A name for an input that does not depend on where the run or the data lie."""
        for root in (self.directory, self.data):
            if path.is_relative_to(root):
                return path.relative_to(root).as_posix()
        return path.name

    def _event(self, stage: str, event: str, seconds: float) -> None:
        row = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "stage": stage,
            "event": event,
            "seconds": round(seconds, 3),
        }
        with self.path("events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.console.stage(stage, event, seconds)


def _runs_code(options: RewardOptions) -> bool:
    return options.kind == "callable" or any(map(_runs_code, options.parts))


def _cut_half_line(path: Path) -> None:
    """Drop the end of a log that a crash left without its line break."""
    if path.is_file():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
