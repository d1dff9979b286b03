"""One stage of a run on disk, built in a work folder and renamed when complete.

    DIR/<stage>/manifest.json            files, fingerprint, and inputs and settings (`MadeFrom`)
    DIR/.work/<stage>/                   an attempt; `/` in the name becomes `.`
    DIR/.work/<stage>.fingerprint        fingerprint that the attempt was begun for

A stage is rebuilt when the fingerprint, the hash of its settings and input files, changes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, NamedTuple

from adagrpo.config import Change, Config, read_settings
from adagrpo.errors import UserError
from adagrpo.storage.artifacts import check_replaceable, manifest, publish, remove_artifact, seal, verify
from adagrpo.storage.hashes import hash_json
from adagrpo.storage.locks import WORK
from adagrpo.storage.removal import MANIFEST, remove, unknown_files
from adagrpo.storage.writing import make_folder, naming, write_file

State = Literal["done", "stale", "missing", "interrupted", "damaged", "unused"]

# files of a fit: log, best and final weights, and the state to resume from
CHECKPOINTS = (
    *("steps.jsonl", "validation.jsonl", "model.safetensors", "checkpoint.json", "lost.json", "pressure.json"),
    *("best.safetensors", "average.safetensors", "optimizer.safetensors", "progress.json"),
    *("semantic_ids.json", "config.json"),
)


@dataclass(frozen=True)
class Declaration:
    """Inputs and build function of a stage; declaring opens no files.

    Attributes:
        build: writes the files into a folder, which may hold an interrupted attempt.
        inputs: files to read; those of other stages must be unchanged.
        files: names of the files written, at any depth.
        settings: recipe keys and sections that affect the result.
        but: keys below them that do not.
        also: JSON-able further inputs, such as the arm.
        schema: increased when the same inputs give another result.
        together: fits a model in all processes; only the main one writes.
        changed: returns what changed outside files and settings since a folder was built, or "".
    """

    build: Callable[[Path], None]
    inputs: Sequence[Path]
    files: Sequence[str]
    settings: Sequence[str] = ()
    but: Sequence[str] = ()
    also: Any = None
    schema: int = 1
    together: bool = False
    changed: Callable[[Path], str] = lambda there: ""

    def made_from(self, config: Config, inputs: dict[str, str]) -> MadeFrom:
        """Return inputs and settings under a configuration."""
        settings = read_settings(config, self.settings, self.but)
        return MadeFrom(self.schema, settings, self.also, inputs, tuple(self.settings), tuple(self.but))


class MadeFrom(NamedTuple):
    """Inputs and settings of a stage, as in its manifest."""

    schema: int
    settings: dict[str, Any]  # non-default settings, see `read_settings`
    also: Any  # JSON-able
    inputs: dict[str, str]  # sha256 by label
    reads: Sequence[str] = ()  # keys that `settings` are below
    but: Sequence[str] = ()  # keys below them that are not read

    def fingerprint(self, stage: str) -> str:
        """Return the hash that decides whether the stage is rebuilt."""
        return hash_json(
            {
                "stage": stage,
                "schema": self.schema,
                "settings": self.settings,
                "also": self.also,
                "inputs": self.inputs,
            }
        )

    @classmethod
    def of(cls, content: dict[str, Any]) -> MadeFrom | None:
        """Read a manifest's content; None for an old version."""
        return cls(**content["made_from"]) if "made_from" in content else None


@dataclass(frozen=True)
class Part:
    """State of a stage."""

    name: str
    state: State
    why: str = ""  # why it is not done
    changes: tuple[Change, ...] = ()  # settings that differ
    sources: tuple[str, ...] = ()  # stages that it reads
    there: bool = True  # finished at some time
    outdated: bool = False  # done, but a file outside the run has changed

    @property
    def usable(self) -> bool:
        """Whether the stage matches the run's current settings."""
        return self.state == "done"


class StageFolder:
    """Paths of one stage in a writable run directory."""

    def __init__(self, directory: Path, name: str, files: Sequence[str] = ()) -> None:
        """Set the paths; folders with files other than `files` are never removed."""
        self.directory, self.name, self._files = directory, name, {*files, MANIFEST}
        self.place = directory / name
        self.work = directory / WORK / name.replace("/", ".")
        self._marker = self.work.with_name(self.work.name + ".fingerprint")

    def begun_for(self) -> str | None:
        """Return the fingerprint of an interrupted attempt, or None."""
        if not self._marker.is_file() or not self.work.is_dir():
            return None
        return self._marker.read_text(encoding="utf-8")

    def check(self) -> None:
        """Refuse to build over links or files that this program did not write."""
        for place in (self.place, self.work):
            for folder in takewhile(lambda folder: folder != self.directory, (place, *place.parents)):
                if folder.is_symlink():
                    raise UserError(f"{folder}: is a link; a run is written into folders of its own, move it away")
        check_replaceable(self.place, self.name, self._is_own)
        self._check_work()

    def make(self, made_from: MadeFrom, build: Callable[[Path], None]) -> None:
        """Build and publish the stage, resuming an interrupted attempt."""
        fingerprint, work = made_from.fingerprint(self.name), self.work
        if self.begun_for() != fingerprint:
            self.forget()
        make_folder(work)
        write_file(self._marker, fingerprint)
        sealed = manifest(work)
        if sealed is not None and sealed["fingerprint"] != fingerprint:  # a published stage that was taken out
            remove_artifact(work)
            make_folder(work)
            sealed = None
        if sealed is None:
            with naming(work):
                build(work)
            remove(work / "checkpoints", self._is_own)
            self._check_work()
            seal(work, kind=self.name, fingerprint=fingerprint, made_from=made_from._asdict())
        else:  # the attempt ended between sealing and publishing
            verify(work)
        publish(work, self.place)
        self._marker.unlink()

    def forget(self) -> None:
        """Remove an interrupted attempt."""
        if not os.path.lexists(self.work) and not os.path.lexists(self._marker):
            return
        self.check()
        self._marker.unlink(missing_ok=True)  # first, so that a partly removed folder is never resumed
        remove(self.work, self._is_own)

    def _is_own(self, name: str) -> bool:
        return Path(name).name in self._files

    def _check_work(self) -> None:
        unknown = unknown_files(self.work, self._is_own)
        if unknown:
            raise UserError(f"{unknown[0]}: not made by this program; move it away, and carry out the command again")
