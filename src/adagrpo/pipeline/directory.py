"""A run directory: where its files lie, how they are read and checked, and how a stage is made.

A run is marked as one (`adagrpo.storage.marks`); a folder that holds anything else is refused, untouched. A stage is a
folder (`adagrpo.pipeline.stage`). Its manifest carries a fingerprint: the hash of the settings that decide its result,
of the files it reads, and of the number of its schema. `RunDirectory.make` skips a stage whose fingerprint is
unchanged. One that was interrupted goes on from what its work folder holds, if that was begun under the same
fingerprint.

run.yaml has the settings of the work that was done. What a command changes by `--set` holds for that command, and is
written when all of its work is done (`RunDirectory.keep_settings`).

A file of a run is read through `RunDirectory.checked`, which compares it with its manifest or, for the files that
belong to no stage, with the hash in run.yaml.

A run may go on from another one that it never writes to: what it lacks is read there (`adagrpo evaluate --out`).

Where several processes were launched, the first one alone holds the lock and writes; the others take part in the stages
that fit a model and wait for the end of every other one, see `RunDirectory.make`.
"""

from __future__ import annotations

import copy
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import torch

from adagrpo.config import Config, Settings, as_overrides, dump_config, resolve_config
from adagrpo.console import Console, Silent, StderrConsole
from adagrpo.errors import UserError
from adagrpo.pipeline.description import (
    DESCRIPTION,
    describe,
    hash_of_output,
    outputs,
    read_description,
    write_description,
)
from adagrpo.pipeline.events import append_event, cut_half_line, read_events
from adagrpo.pipeline.json_files import read_json
from adagrpo.pipeline.stage import Declaration, StageFolder
from adagrpo.storage.artifacts import manifest, verify, verify_file
from adagrpo.storage.hashes import cached_hash, hash_json
from adagrpo.storage.locks import lock_folder
from adagrpo.storage.marks import MARK, check_kind, is_marked, read_mark
from adagrpo.storage.removal import MANIFEST
from adagrpo.storage.writing import write_file
from adagrpo.trainer.processes import processes

BUILD, DONE = "build", "done"  # what the first process sends to the others during a stage


def refuse_without_order(config: Config, command: str) -> None:
    """Refuse what predicts a next item where nothing says what came next.

    Args:
        command: what there is to do instead.

    Raises:
        UserError: its logs are impressions without order.
    """
    if config.without_order:
        raise UserError(
            "data.split.kind: impressions has no order, so no next item for a policy to learn;"
            f" `{command}` fits and examines the ranker"
        )


class RunDirectory(ABC):
    """The directory of a run, and its files; `adagrpo.pipeline.run.Run` adds what is done with them."""

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
        self.called = directory  # as the user calls the run
        self.overrides: tuple[str, ...] = ()  # of run.yaml, by this command
        self.catalog = 0  # the version of the catalogue that is evaluated, see `adagrpo.pipeline.versions`
        self.described: Config | None = None  # what run.yaml says; None where the run was not opened
        self.made: list[str] = []  # the stages that were made, not skipped
        self.remembered: dict[str, Any] = {}  # by the hash of what it was computed from, what another arm would repeat
        self._noted: dict[str, Any] = {}
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
        directory: str | Path,
        settings: Settings = (),
        console: Console | None = None,
        out: str | Path | None = None,
        *,
        progress: bool = False,
    ) -> Self:
        """Open a run that is there; nothing is written.

        Args:
            directory: of the run.
            settings: changes of the recipe, as `--set` makes them: `{"reward.kind": "noise"}`. run.yaml takes them on
                when a command has done its work.
            console: where progress is shown.
            out: another run directory, new or begun earlier in this way, for all that is written from here on; the
                run itself is only read.
            progress: show on stderr how far the work is.

        Raises:
            UserError: there is no run, or none where it goes on from, its run.yaml is damaged, a setting is none, or
                `out` is given for a run that has a source itself or is a run that does not go on from this one.
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
            before, data = content["config"], Path(content["data_directory"])
            code = Path(content["code_directory"]) if "code_directory" in content else None
        except (KeyError, TypeError) as error:
            raise UserError(f"{described / DESCRIPTION}: damaged; carry out `adagrpo run` again") from error
        as_described = resolve_config(copy.deepcopy(before), (), str(described / DESCRIPTION))
        # what is wrong now is wrong with what was set
        config = resolve_config(before, overrides, "--set") if overrides else as_described
        run = cls(directory, config, data, StderrConsole() if progress else console, code, source)
        run.described, run.catalog = as_described, content.get("catalog", 0)
        run.called, run.overrides = called, tuple(overrides)
        return run

    def reopened(self) -> Self:
        """The run as it is now, which another process may have changed."""
        return type(self).open(self.called, self.overrides)

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
                cut_half_line(self.directory)
                yield
            finally:
                self._locked = False

    @property
    def config_hash(self) -> str:
        """Hash of the whole resolved configuration."""
        return hash_json(dump_config(self.config))

    def path(self, *parts: str) -> Path:
        """Return the path of something of the run: in its own directory, or where it alone is, in its source."""
        own = self.directory.joinpath(*parts)
        if self.source is not None and not os.path.lexists(own) and self.source.joinpath(*parts).exists():
            return self.source.joinpath(*parts)
        return own

    def weights_of(self, arm: str, checkpoint: str = "best") -> Path:
        """Return the folder of the weights of an arm, or of the starting policy, `sft`."""
        return self.path(*(("sft",) if arm == "sft" else ("train", arm)), checkpoint)

    def folder(self, stage: str) -> Path:
        """Return the folder of a finished stage; it may also hold an inner stage alone, such as `ranker/report`."""
        return self.path(*stage.split("/"), MANIFEST).parent

    def checked(self, *parts: str) -> Path:
        """A file of the run that is as it was written.

        Raises:
            UserError: it is missing or was changed after it was made; it is named.
        """
        path = self.path(*parts)
        self.hash_input(path)
        return path

    def content(self, *parts: str) -> dict[str, Any]:
        """The object that a JSON file of the run holds; see `checked`."""
        return read_json(self.checked(*parts))

    @property
    def roots(self) -> list[Path]:
        """The folders that the run is read from: that of its source, if it has one, and its own."""
        return [root for root in (self.source, self.directory) if root is not None]

    def root_of(self, path: Path) -> Path | None:
        """The one of `roots` that a path is in; None for one that is elsewhere."""
        return next((root for root in reversed(self.roots) if path.is_relative_to(root)), None)

    def finished(self, *patterns: str) -> list[str]:
        """The names of finished stages, of patterns such as `train/*`."""
        paths = (
            (root, path) for root in self.roots for pattern in patterns for path in root.glob(f"{pattern}/{MANIFEST}")
        )
        return sorted({path.parent.relative_to(root).as_posix() for root, path in paths})

    def find(self, *parts: str) -> Path | None:
        """`checked`, or None where there is no such file."""
        path = self.path(*parts)
        if path.name == DESCRIPTION and path.is_file():
            read_description(path.parent)
        return self.checked(*parts) if path.is_file() else None

    def find_content(self, *parts: str) -> dict[str, Any] | None:
        """`content`, or None where there is no such file."""
        path = self.find(*parts)
        return None if path is None else read_json(path)

    def checked_stage(self, name: str, *, but: Collection[str] = ()) -> Path:
        """The folder of a finished stage whose files, but for some, are all as they were written.

        Raises:
            UserError: the stage is missing, or a file of it was changed after it was made; it is named.
        """
        folder = self.folder(name)
        content = manifest(folder)
        if content is None:
            raise UserError(f"{folder}: missing; run {self.remake_command(folder)} first")
        for file in content["files"].keys() - set(but):
            verify_file(folder, file, content)
        return folder

    def write_description(self, data_files: Mapping[str, str]) -> None:
        """Write run.yaml: the resolved configuration, what each arm is trained by, versions, data hashes, threads."""
        if not self.processes.is_main_process:
            return
        content = describe(self.config, data_files, data=self.data, code=self.code)
        with self.locked():
            with suppress(UserError):  # of a damaged one nothing is believed
                kept = read_description(self.path(DESCRIPTION).parent)
                same_reward = kept["config"].get("reward") == content["config"]["reward"]
                names = ("outputs", "collected", "decided", "catalog", *(("reward",) if same_reward else ()))
                content |= {name: kept[name] for name in names if name in kept}
            write_description(self.directory, content | self._noted)

    def note(self, key: str, value: Any) -> None:
        """Have `keep_settings` add something to run.yaml."""
        self._noted[key] = value

    def keep_settings(self) -> None:
        """Write the settings of this command into run.yaml, its work being done; nothing where they are there."""
        if not self.processes.is_main_process:
            return
        content = read_description(self.path(DESCRIPTION).parent)
        wanted = describe(self.config, content["data"], data=self.data, code=self.code) | self._noted
        if any(content.get(key) != value for key, value in wanted.items() if key not in ("threads", "versions")):
            self.write_description(content["data"])

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

    def make(self, name: str, declared: Declaration) -> Path:
        """Make a stage unless it is there already.

        Args:
            name: the stage's folder below the run directory, `/`-separated.
            declared: what it is made from, and how.

        Returns:
            The finished folder.

        Raises:
            UserError: an input is missing, or the stage's files were changed after they were made.
        """

        def build(work: Path) -> None:
            if declared.together:  # it begins in the other processes too
                self.processes.broadcast(BUILD)
            declared.build(work)

        folder = StageFolder(self.directory, name, declared.files)
        if not self.processes.is_main_process:
            while self.processes.broadcast() == BUILD:
                declared.build(folder.work)
            return self.folder(name)
        with self.locked():
            made_from = declared.made_from(self.config, self.hash_inputs(declared.inputs))
            there = self.folder(name)
            done = manifest(there)
            if done is not None and done["fingerprint"] == made_from.fingerprint(name):
                verify(there)
                folder.forget()
                self._event(name, "skip", 0.0)
            else:
                folder.check()
                self._event(name, "start", 0.0)
                started = time.monotonic()
                folder.make(made_from, build)
                self.made.append(name)
                self._event(name, "end", time.monotonic() - started)
            if self.followed:
                self.processes.broadcast(DONE)
            return self.folder(name)

    def has_made(self, name: str, declared: Declaration) -> bool:
        """Return whether a stage is there and up to date."""
        done = manifest(self.folder(name))
        wanted = declared.made_from(self.config, self.hash_inputs(declared.inputs))
        return done is not None and done["fingerprint"] == wanted.fingerprint(name)

    @abstractmethod
    def remake_command(self, place: Path | str) -> str:
        """The command that makes a stage, or the stage of a file, as a user types it."""

    def refuse_without_order(self) -> None:
        """Refuse what predicts a next item where nothing says what came next.

        Raises:
            UserError: the logs are impressions without order.
        """
        refuse_without_order(self.config, f"adagrpo ranker --run {self.called}")

    def trained(self) -> list[str]:
        """The folders of finished arms, by name."""
        return [name.removeprefix("train/") for name in self.finished("train/*")]

    def events(self) -> list[dict[str, Any]]:
        """Read the events of the stages: rows of time, stage, event and seconds, those of the source first.

        Raises:
            UserError: a row is not as it was written.
        """
        return [row for root in self.roots for row in read_events(root)]

    def remark(self, stage: str, sentence: str) -> None:
        """Tell the console and the log of events what somebody should know of a stage that goes on all the same."""
        if self.processes.is_main_process:
            self._event(stage, sentence, 0.0)

    def go_on_alone(self) -> None:
        """From here on the first process works without the others, which wait until it is done."""
        self.followed = False

    def hash_inputs(self, paths: Sequence[Path]) -> dict[str, str]:
        """The sha256 of each file by its label; a file that has the label of another one gets a number."""
        return {label: self.hash_input(path) for label, path in self.labels(paths).items()}

    def labels(self, paths: Sequence[Path]) -> dict[str, Path]:
        """Files by their labels; one that has the label of another one gets a number."""
        labelled: dict[str, Path] = {}
        for path in dict.fromkeys(paths):
            label, count = self.label(path), 1
            while label in labelled:
                count += 1
                label = f"{self.label(path)} ({count})"
            labelled[label] = path
        return labelled

    def hash_input(self, path: Path) -> str:
        """The sha256 of a file that something reads.

        Raises:
            UserError: no such file, or it is part of a run and was changed after it was made.
        """
        root = self.root_of(path)
        if not path.is_file():
            if root is not None:
                self._refuse_damaged(path.relative_to(root))
                raise UserError(f"{path}: missing; run {self.remake_command(path)} first")
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

    def _refuse_damaged(self, file: Path) -> None:
        """Refuse with what to delete where a finished stage lacks a file of its own: its verb would not make it."""
        for root in reversed(self.roots):
            for inner in file.parents[:-1]:
                content, name = manifest(root / inner), file.relative_to(inner).as_posix()
                if content is not None and name in content["files"]:
                    verify_file(root / inner, name, content)

    def label(self, path: Path) -> str:
        """A name for an input that does not depend on where the run or the data lie."""
        for root in (self.directory, self.source, self.data, self.data.resolve()):  # run.yaml has the last one
            if root is not None and path.is_relative_to(root):
                return path.relative_to(root).as_posix()
        return path.name

    def _event(self, stage: str, event: str, seconds: float) -> None:
        append_event(self.directory, stage, event, seconds)
        self.console.stage(stage, event, seconds)


Declare = Callable[[RunDirectory], Declaration]  # what a stage of a run is made from, and how
