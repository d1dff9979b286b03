"""Make a stage unless what it was made from is unchanged: in a work folder, which a rename publishes when complete.

.work/<stage>, whose `/` becomes `.`, is an attempt, .work/<stage>.fingerprint what it was begun for: the same goes on.
"""

from __future__ import annotations

import os
import time
from itertools import takewhile
from pathlib import Path

from adagrpo.errors import UserError
from adagrpo.pipeline.directory import RunDirectory, folder_of, kept, locked, log_event, made_from
from adagrpo.pipeline.stage import Declaration, MadeFrom
from adagrpo.storage.artifacts import check_replaceable, manifest, publish, remove_artifact, seal, verify
from adagrpo.storage.locks import WORK
from adagrpo.storage.writing import make_folder, naming, remove, unknown_files, write_file
from adagrpo.trainer.processes import processes

BUILD, DONE = "build", "done"  # messages from the first process to the others


def make(run: RunDirectory, name: str, declared: Declaration) -> Path:
    """Make a stage unless it is up to date, return its path; UserError: an input is missing, or it was changed."""
    if not processes().is_main_process:
        while processes().broadcast() == BUILD:
            declared.build(_work(run.directory, name))
        return folder_of(run, name)
    with locked(run):
        wanted, there = made_from(run, declared), folder_of(run, name)
        changed = None  # what did, in words
        if wanted.equals(kept(run, name)):
            verify(there)
            changed = declared.changed(there)
        if changed == "":
            _forget(run.directory, name, declared)
            log_event(run, name, "skip")
        else:
            if changed:
                run.console.note(f"note: {changed}; {name} is made again, with what is made from it")
            _check(run.directory, name, declared)
            log_event(run, name, "start")
            started = time.monotonic()
            _build(run.directory, name, declared, wanted)
            run.made.append(name)
            log_event(run, name, "end", time.monotonic() - started)
        if run._followed:
            processes().broadcast(DONE)
        return folder_of(run, name)


def begun_for(directory: Path, name: str) -> str | None:
    """Return the fingerprint of an interrupted attempt at a stage, or None."""
    marker = _marker(directory, name)
    return marker.read_text(encoding="utf-8") if marker.is_file() and _work(directory, name).is_dir() else None


def _work(directory: Path, name: str) -> Path:
    return directory / WORK / name.replace("/", ".")


def _marker(directory: Path, name: str) -> Path:
    return directory / WORK / f"{name.replace('/', '.')}.fingerprint"


def _build(directory: Path, name: str, declared: Declaration, wanted: MadeFrom) -> None:
    fingerprint, work = wanted.fingerprint(name), _work(directory, name)
    if begun_for(directory, name) != fingerprint:
        _forget(directory, name, declared)
    make_folder(work)
    write_file(_marker(directory, name), fingerprint)
    sealed = manifest(work)
    if sealed is not None and sealed["fingerprint"] != fingerprint:  # a published stage that was taken out
        remove_artifact(work)
        make_folder(work)
        sealed = None
    if sealed is None:
        with naming(work):
            if declared.together:  # start it in the other processes too
                processes().broadcast(BUILD)
            declared.build(work)
        remove(work / "checkpoints", declared.writes)
        _check_work(work, declared)
        seal(work, kind=name, fingerprint=fingerprint, made_from=wanted._asdict())
    else:  # the attempt ended between sealing and publishing
        verify(work)
    publish(work, directory / name)
    _marker(directory, name).unlink()


def _forget(directory: Path, name: str, declared: Declaration) -> None:
    work, marker = _work(directory, name), _marker(directory, name)
    if os.path.lexists(work) or os.path.lexists(marker):
        _check(directory, name, declared)
        marker.unlink(missing_ok=True)  # first, so that a partly removed folder is never resumed
        remove(work, declared.writes)


def _check(directory: Path, name: str, declared: Declaration) -> None:
    """Refuse to build over links or files that this program did not write."""
    for place in (directory / name, _work(directory, name)):
        for folder in takewhile(lambda folder: folder != directory, (place, *place.parents)):
            if folder.is_symlink():
                raise UserError(f"{folder}: is a link; a run is written into folders of its own, move it away")
    check_replaceable(directory / name, name, declared.writes)
    _check_work(_work(directory, name), declared)


def _check_work(work: Path, declared: Declaration) -> None:
    if unknown := unknown_files(work, declared.writes):
        raise UserError(f"{unknown[0]}: not made by this program; move it away, and carry out the command again")
