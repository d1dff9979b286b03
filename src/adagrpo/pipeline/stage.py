"""One stage of a run on disk: made in a work folder of its own, and renamed into place when it is whole.

    DIR/<stage>/manifest.json            files, fingerprint, and what the stage was made from (`MadeFrom`)
    DIR/.work/<stage>/                   an attempt; `/` in the name becomes `.`
    DIR/.work/<stage>.fingerprint        for which fingerprint it was begun

The fingerprint is the hash of the settings and of the files that a stage is made from: it decides whether the stage is
made again. What it is the hash of is kept in the manifest, so that the difference can be named.
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

# the files of a fit: its log, the best and the final weights, and what an interrupted fit goes on from
CHECKPOINTS = (
    *("steps.jsonl", "validation.jsonl", "model.safetensors", "checkpoint.json", "lost.json", "pressure.json"),
    *("best.safetensors", "average.safetensors", "optimizer.safetensors", "progress.json"),
    *("semantic_ids.json", "config.json"),
)


@dataclass(frozen=True)
class Declaration:
    """Declaration of a stage: what it is made from, and how it is built.

    Declaring names files and opens none, so that status and dry runs can ask for it where nothing is made yet.

    Attributes:
        build: writes the stage's files into the folder it is given, which may hold an interrupted attempt.
        inputs: the files that it reads; those of another stage must be as that stage left them.
        files: the names of the files that it writes, in whatever folder below its own.
        settings: keys and sections of the recipe that decide the result, see `adagrpo.config.read_settings`.
        but: keys below those that do not.
        also: JSON-able, what else decides the result: a constant of the code, the fold, the arm.
        schema: of what the stage computes; raised when the same inputs and settings come to give another result.
        together: it fits a model: all processes take part, and those that do not lead write nothing.
        changed: says of the finished folder what is another one since, that no file or setting shows; empty where
            nothing is. The stage is then made again.
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
        """Return what the stage is made from under a configuration."""
        settings = read_settings(config, self.settings, self.but)
        return MadeFrom(self.schema, settings, self.also, inputs, tuple(self.settings), tuple(self.but))


class MadeFrom(NamedTuple):
    """The inputs and settings of a made stage, as its manifest keeps them."""

    schema: int
    settings: dict[str, Any]  # those of the configuration that are not as by default, see `read_settings`
    also: Any  # JSON-able
    inputs: dict[str, str]  # the sha256 of each file, by its label
    reads: Sequence[str] = ()  # the keys of the configuration that `settings` are below
    but: Sequence[str] = ()  # keys below those that it does not read

    def fingerprint(self, stage: str) -> str:
        """The hash that decides whether the stage is made again."""
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
        """Those that a manifest keeps; None where it was written before there were any."""
        return cls(**content["made_from"]) if "made_from" in content else None


@dataclass(frozen=True)
class Part:
    """A stage of a run as it lies there, compared with what it would be made from now."""

    name: str
    state: State
    why: str = ""  # why it is not done, in words
    changes: tuple[Change, ...] = ()  # settings that differ
    sources: tuple[str, ...] = ()  # the stages that it is made from
    there: bool = True  # finished at some time
    outdated: bool = False  # done, and a file outside the run is another one than was read

    @property
    def usable(self) -> bool:
        """True where it may be read as what the run's settings say."""
        return self.state == "done"


class StageFolder:
    """The places of one stage in a run directory that is written to."""

    def __init__(self, directory: Path, name: str, files: Sequence[str] = ()) -> None:
        """Look at the places of a stage.

        Args:
            files: the names of the files that it writes; a folder with any other file is never removed.
        """
        self.directory, self.name, self._files = directory, name, {*files, MANIFEST}
        self.place = directory / name
        self.work = directory / WORK / name.replace("/", ".")
        self._marker = self.work.with_name(self.work.name + ".fingerprint")

    def begun_for(self) -> str | None:
        """The fingerprint of an attempt that was interrupted; None where there is none."""
        if not self._marker.is_file() or not self.work.is_dir():
            return None
        return self._marker.read_text(encoding="utf-8")

    def check(self) -> None:
        """Refuse to make the stage where something of somebody else's stands in its place or on the way to it.

        Raises:
            UserError: a link, which is never followed to be written behind, or a file that this program did not make.
        """
        for place in (self.place, self.work):
            for folder in takewhile(lambda folder: folder != self.directory, (place, *place.parents)):
                if folder.is_symlink():
                    raise UserError(f"{folder}: is a link; a run is written into folders of its own, move it away")
        check_replaceable(self.place, self.name, self._is_own)
        self._check_work()

    def make(self, made_from: MadeFrom, build: Callable[[Path], None]) -> None:
        """Build the stage, from where an interrupted attempt stopped, and put it in place."""
        fingerprint, work = made_from.fingerprint(self.name), self.work
        if self.begun_for() != fingerprint:
            self.forget()
        make_folder(work)
        write_file(self._marker, fingerprint)
        sealed = manifest(work)
        if sealed is not None and sealed["fingerprint"] != fingerprint:  # what was published before, taken out
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
        self._marker.unlink(missing_ok=True)  # first, so that a half removed folder is never taken for an attempt
        remove(self.work, self._is_own)

    def _is_own(self, name: str) -> bool:
        """Return whether the stage writes a file of this name."""
        return Path(name).name in self._files

    def _check_work(self) -> None:
        unknown = unknown_files(self.work, self._is_own)
        if unknown:
            raise UserError(f"{unknown[0]}: not made by this program; move it away, and carry out the command again")
