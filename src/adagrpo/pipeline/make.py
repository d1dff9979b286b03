"""Make a stage: in a work folder, which a rename publishes when it is complete.

    DIR/<stage>/manifest.json            files, fingerprint, and what it was made from (`MadeFrom`)
    DIR/.work/<stage>/                   an attempt; `/` in the name becomes `.`
    DIR/.work/<stage>.fingerprint        fingerprint that the attempt was begun for

A stage is skipped when what it was made from is unchanged, and an interrupted attempt for the same inputs goes on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path

from adagrpo.errors import UserError
from adagrpo.pipeline.directory import RunDirectory, folder_of, locked, log_event, made_from
from adagrpo.pipeline.stage import Declaration, MadeFrom
from adagrpo.storage.artifacts import check_replaceable, manifest, publish, remove_artifact, seal, verify
from adagrpo.storage.locks import WORK
from adagrpo.storage.writing import MANIFEST, make_folder, naming, remove, unknown_files, write_file

BUILD, DONE = "build", "done"  # messages from the first process to the others


def make(run: RunDirectory, name: str, declared: Declaration) -> Path:
    """Make a stage, a `/`-separated folder, unless it is up to date; return its path.

    Raises:
        UserError: an input is missing, or the stage was changed.
    """

    def build(work: Path) -> None:
        if declared.together:  # start it in the other processes too
            run.processes.broadcast(BUILD)
        declared.build(work)

    folder = StageFolder(run.directory, name, declared.files)
    if not run.processes.is_main_process:
        while run.processes.broadcast() == BUILD:
            declared.build(folder.work)
        return folder_of(run, name)
    with locked(run):
        wanted, there = made_from(run, declared), folder_of(run, name)
        same = wanted.equals(MadeFrom.of(manifest(there) or {}, run.stages))
        if same:
            verify(there)
        if same and not (changed := declared.changed(there)):
            folder.forget()
            log_event(run, name, "skip")
        else:
            if same:
                run.console.note(f"note: {changed}; {name} is made again, with what is made from it")
            folder.check()
            log_event(run, name, "start")
            started = time.monotonic()
            folder.make(wanted, build)
            run.made.append(name)
            log_event(run, name, "end", time.monotonic() - started)
        if run.followed:
            run.processes.broadcast(DONE)
        return folder_of(run, name)


def has_made(run: RunDirectory, name: str, declared: Declaration) -> bool:
    """Return whether a stage is up to date."""
    return made_from(run, declared).equals(MadeFrom.of(manifest(folder_of(run, name)) or {}, run.stages))


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

    def make(self, wanted: MadeFrom, build: Callable[[Path], None]) -> None:
        """Build and publish the stage, resuming an interrupted attempt."""
        fingerprint, work = wanted.fingerprint(self.name), self.work
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
            seal(work, kind=self.name, fingerprint=fingerprint, made_from=wanted._asdict())
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
