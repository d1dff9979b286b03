"""A run directory: which stages are done, from what they were made, and the log of events.

A stage is a folder. It is made in `.work/<stage>` and renamed into place when whole, so what a reader finds under the
stage's name is finished. Its manifest carries a fingerprint: the hash of the configuration that the stage reads and of
the files it reads. A stage whose fingerprint is unchanged is skipped; one that was interrupted goes on from what its
work folder holds, if that was begun under the same fingerprint.
"""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml

from adagrpo import __version__
from adagrpo.artifacts import hash_file, hash_json, manifest, publish, seal, verify, write_file
from adagrpo.config import Config, dump_config
from adagrpo.errors import UserError

__all__ = ["Console", "Run", "Silent"]


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

    def __init__(self, directory: Path, config: Config, data: Path, console: Console | None = None) -> None:
        self.directory, self.config, self.data = directory, config, data
        self.console: Console = console or Silent()
        if directory.exists() and not directory.is_dir():
            raise UserError(f"{directory}: is a file; --out takes a folder")
        directory.mkdir(parents=True, exist_ok=True)
        if config.threads is not None:
            torch.set_num_threads(config.threads)

    @classmethod
    def open(cls, directory: Path, overrides: Callable[[Path], Config], console: Console | None = None) -> Run:
        """Open an existing run; `overrides` reads the configuration from a recipe file, as `load_config` does."""
        path = directory / "run.yaml"
        if not path.is_file():
            raise UserError(f"{directory}: not a run (no run.yaml); make one with `adagrpo run` or `adagrpo prepare`")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        recipe = directory / ".work" / "recipe.yaml"
        write_file(recipe, yaml.safe_dump(content["config"], sort_keys=False))
        return cls(directory, overrides(recipe), Path(content["data_directory"]), console)

    @property
    def config_hash(self) -> str:
        """Hash of the whole resolved configuration."""
        return hash_json(dump_config(self.config))

    def path(self, *parts: str) -> Path:
        """A path below the run directory."""
        return self.directory.joinpath(*parts)

    def write_description(self, data_files: Mapping[str, str]) -> None:
        """Write run.yaml: the resolved configuration, versions, hashes of the data, threads."""
        packages = ("torch", "numpy", "accelerate", "polars", "scipy", "safetensors")
        content = {
            "config": dump_config(self.config),
            "config_hash": self.config_hash,
            "data_directory": str(self.data.resolve()),
            "data": dict(data_files),
            "threads": torch.get_num_threads(),
            "versions": {"adagrpo": __version__, "python": platform.python_version()}
            | {name: version(name) for name in packages},
        }
        write_file(self.path("run.yaml"), yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    def stage(
        self, name: str, *, config: Any, inputs: Sequence[Path], build: Callable[[Path], None], quiet: bool = False
    ) -> Path:
        """Make a stage unless it is there already.

        Args:
            name: the stage's folder below the run directory, `/`-separated.
            config: JSON-able, what the stage reads of the configuration.
            inputs: files that it reads; those of another stage are trusted to that stage's manifest.
            build: writes the stage's files into the folder it is given, which may hold an interrupted attempt.
            quiet: do not tell the console, for stages of a moment.

        Returns:
            The finished folder.

        Raises:
            UserError: an input is missing, or the stage's files were changed after they were made.
        """
        target = self.path(name)
        sources = {self._label(path): self.hash_input(path) for path in inputs}
        fingerprint = hash_json({"stage": name, "config": config, "inputs": sources})
        done = manifest(target)
        if done is not None and done["fingerprint"] == fingerprint:
            verify(target)
            self._event(name, "skip", 0.0, quiet)
            return target
        work = self.path(".work", name.replace("/", "."))
        marker = work.with_name(work.name + ".fingerprint")
        if work.exists() and not (marker.is_file() and marker.read_text(encoding="utf-8") == fingerprint):
            shutil.rmtree(work)
        work.mkdir(parents=True, exist_ok=True)
        write_file(marker, fingerprint)
        self._event(name, "start", 0.0, quiet)
        started = time.monotonic()
        build(work)
        shutil.rmtree(work / "checkpoints", ignore_errors=True)
        seal(work, kind=name, fingerprint=fingerprint)
        publish(work, target)
        marker.unlink()
        self._event(name, "end", time.monotonic() - started, quiet)
        return target

    def hash_input(self, path: Path) -> str:
        """The sha256 of a file, read from the manifest where the file belongs to a finished stage."""
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
                return str(content["files"][path.relative_to(folder).as_posix()]["sha256"])
        return hash_file(path)

    def _label(self, path: Path) -> str:
        """A name for an input that does not depend on where the run or the data lie."""
        for root in (self.directory, self.data):
            if path.is_relative_to(root):
                return path.relative_to(root).as_posix()
        return path.name

    def _event(self, stage: str, event: str, seconds: float, quiet: bool) -> None:
        row = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "stage": stage,
            "event": event,
            "seconds": round(seconds, 3),
        }
        with self.path("events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if not quiet:
            self.console.stage(stage, event, seconds)
