"""One stage of a run on disk: made in a work folder of its own, and renamed into place when it is whole.

    DIR/<stage>/manifest.json            files, fingerprint, and what the stage was made from (`Ingredients`)
    DIR/.work/<stage>/                   an attempt; `/` in the name becomes `.`
    DIR/.work/<stage>.fingerprint        for which fingerprint it was begun

The fingerprint is the hash of the ingredients less the keys that were read: it is what decides whether a stage is made
again. The ingredients are kept beside it, so that it can be said why.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from adagrpo.config import Change
from adagrpo.errors import UserError
from adagrpo.pipeline.written import is_written
from adagrpo.storage.artifacts import check_replaceable, manifest, publish, remove_artifact, seal, verify
from adagrpo.storage.hashes import hash_json
from adagrpo.storage.locks import WORK
from adagrpo.storage.removal import foreign_files, remove
from adagrpo.storage.writing import make_folder, naming, write_file

__all__ = ["Ingredients", "Part", "StageFolder", "State"]

State = Literal["done", "stale", "missing", "interrupted", "damaged", "unused"]


class Ingredients(NamedTuple):
    """What a stage is made from."""

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
    def of(cls, content: dict[str, Any]) -> Ingredients | None:
        """Those that a manifest keeps; None where it was written before there were any."""
        return cls(**content["made_from"]) if "made_from" in content else None


@dataclass(frozen=True)
class Part:
    """A stage of a run as it lies there, held against what it would be made from now."""

    name: str
    state: State
    why: str = ""  # why it is not done, in words
    changes: tuple[Change, ...] = ()  # settings that differ
    sources: tuple[str, ...] = ()  # the stages that it is made from
    there: bool = True  # finished at some time
    outdated: bool = False  # done, and a file outside the run is another one than was read

    @property
    def usable(self) -> bool:
        """Whether it may be read as what the run's settings say."""
        return self.state == "done"


class StageFolder:
    """The places of one stage in a run directory that is written to."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory, self.name = directory, name
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
            for folder in (place, *place.parents):
                if folder == self.directory:
                    break
                if folder.is_symlink():
                    raise UserError(f"{folder}: is a link; a run is written into folders of its own, move it away")
        check_replaceable(self.place, self.name)
        self._check_work()

    def make(self, ingredients: Ingredients, build: Callable[[Path], None]) -> None:
        """Build the stage, from where an interrupted attempt stopped, and put it in place."""
        fingerprint, work = ingredients.fingerprint(self.name), self.work
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
            remove(work / "checkpoints", is_written)
            self._check_work()
            seal(work, kind=self.name, fingerprint=fingerprint, made_from=ingredients._asdict())
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
        remove(self.work, is_written)

    def _check_work(self) -> None:
        foreign = foreign_files(self.work, is_written)
        if foreign:
            raise UserError(f"{foreign[0]}: not made by this program; move it away, and carry out the command again")
