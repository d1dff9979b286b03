"""A run directory: opening it, describing it and making its stages.

`RunDirectory.make` skips a stage whose fingerprint, the hash of its settings, input files and schema, is unchanged, and
resumes an interrupted one. `--set` enters run.yaml only when a command's work is done. A run may read what it lacks
from a source run. With several processes, the first locks and writes; others only join in fits.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import torch

from adagrpo.config import Config, Settings, as_overrides, dump_config, resolve_config
from adagrpo.config.objective import in_section
from adagrpo.console import Console, Silent, StderrConsole
from adagrpo.errors import UserError
from adagrpo.lists.names import parse_list
from adagrpo.pipeline.description import (
    DESCRIPTION,
    describe,
    described_config,
    outputs,
    read_description,
    write_description,
)
from adagrpo.pipeline.events import append_event, cut_half_line, read_events
from adagrpo.pipeline.run_folder import RunFolder
from adagrpo.pipeline.stage import Declaration, StageFolder
from adagrpo.storage.artifacts import manifest, verify
from adagrpo.storage.hashes import cached_hash, hash_json
from adagrpo.storage.locks import lock_folder
from adagrpo.storage.marks import MARK, check_kind, is_marked, read_mark
from adagrpo.storage.writing import write_file
from adagrpo.trainer.processes import processes

BUILD, DONE = "build", "done"  # messages from the first process to the others


def refuse_without_order(config: Config, command: str) -> None:
    """Refuse next-item prediction on logs without order; `command` is the suggested alternative."""
    if config.without_order:
        raise UserError(
            "data.split.kind: impressions has no order, so no next item for a policy to learn;"
            f" `{command}` fits and examines the ranker"
        )


class RunDirectory(RunFolder):
    """A run's directory and files; `adagrpo.pipeline.run.Run` adds the commands."""

    def __init__(
        self,
        directory: Path,
        config: Config,
        data: Path,
        console: Console | None = None,
        code: Path | None = None,
        source: Path | None = None,
    ) -> None:
        """Inspect a run directory, which is created at the first write.

        Args:
            data: base folder of the recipe's relative paths.
            code: folder of the recipe's modules; None is the working directory.
            source: a read-only run for missing stages.

        Raises:
            UserError: the directory holds something else, or an arm has a list's name.
        """
        check_kind(directory, "run")
        for arm in config.train.arms:
            if parse_list(arm.name).policy is None:
                raise UserError(f"train.arms: '{arm.name}' is the name of a list; take another")
        self.directory, self.config, self.data, self.source = directory, config, data, source
        self.called = directory  # the path as given by the user
        self.overrides: tuple[str, ...] = ()  # this command's overrides of run.yaml
        self.catalog = 0  # catalogue version to evaluate, see `adagrpo.pipeline.versions`
        self.described: Config | None = None  # content of run.yaml; None unless opened
        self.made: list[str] = []  # stages built, not skipped
        self.remembered: dict[str, Any] = {}  # results shared between arms, by hash of their inputs
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
        """Open an existing run without writing.

        Args:
            directory: of the run.
            settings: like `--set`, `{"reward.kind": "noise"}`; kept in run.yaml when a command succeeds.
            console: where progress is shown.
            out: another run directory, new or begun this way, for all output.
            progress: show progress on stderr.

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
            code = Path(content["code_directory"]) if "code_directory" in content else None
        except (KeyError, TypeError) as error:
            raise UserError(f"{described / DESCRIPTION}: damaged; carry out `adagrpo run` again") from error
        as_described = resolve_config(copy.deepcopy(before), (), str(described / DESCRIPTION))
        # any error is now in the overrides
        config = resolve_config(before, overrides, "--set") if overrides else as_described
        run = cls(directory, config, data, StderrConsole() if progress else console, code, source)
        run.described, run.catalog = as_described, content.get("catalog", 0)
        run.called, run.overrides = called, tuple(map(in_section, overrides))
        if unread:
            said = f"objective.{', objective.'.join(unread)}: not registered here and not in use, so not read"
            run.console.note(f"note: {described / DESCRIPTION}: {said}")
        return run

    def reopened(self) -> Self:
        """Return the run as now on disk."""
        return type(self).open(self.called, self.overrides)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the directory against other processes; reentrant. UserError if it is locked or not writable."""
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
        """Hash of the resolved configuration."""
        return hash_json(dump_config(self.config))

    def write_description(self, data_files: Mapping[str, str]) -> None:
        """Write run.yaml."""
        if not self.processes.is_main_process:
            return
        content = describe(self.config, data_files, data=self.data, code=self.code)
        with self.locked():
            with suppress(UserError):  # a damaged file is ignored
                kept = read_description(self.path(DESCRIPTION).parent)
                same_reward = kept["config"].get("reward") == content["config"]["reward"]
                names = ("outputs", "collected", "decided", "catalog", *(("reward",) if same_reward else ()))
                content |= {name: kept[name] for name in names if name in kept}
            write_description(self.directory, content | self._noted)

    def note(self, key: str, value: Any) -> None:
        """Queue an entry for `keep_settings`."""
        self._noted[key] = value

    def keep_settings(self) -> None:
        """Write this command's settings into run.yaml."""
        if not self.processes.is_main_process:
            return
        content = read_description(self.path(DESCRIPTION).parent)
        wanted = describe(self.config, content["data"], data=self.data, code=self.code) | self._noted
        if any(content.get(key) != value for key, value in wanted.items() if key not in ("threads", "versions")):
            self.write_description(content["data"])

    def record(self, key: str, value: Any) -> None:
        """Add an entry to run.yaml."""
        if not self.processes.is_main_process:
            return
        with self.locked():
            content = read_description(self.path(DESCRIPTION).parent)
            if content.get(key) != value:
                write_description(self.directory, content | {key: value})

    def write_output(self, name: str, text: str) -> Path:
        """Write a file outside stages and its hash into run.yaml."""
        with self.locked():
            path = self.directory / name
            write_file(path, text)
            self.record("outputs", outputs(self.directory) | {name: cached_hash(path)})
        return path

    def make(self, name: str, declared: Declaration) -> Path:
        """Make a stage, a `/`-separated folder, unless it is up to date; return its path.

        Raises:
            UserError: an input is missing, or the stage was changed.
        """

        def build(work: Path) -> None:
            if declared.together:  # start it in the other processes too
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
            same = done is not None and done["fingerprint"] == made_from.fingerprint(name)
            if same:
                verify(there)
            if same and not (changed := declared.changed(there)):
                folder.forget()
                self._event(name, "skip", 0.0)
            else:
                if same:
                    self.console.note(f"note: {changed}; {name} is made again, with what is made from it")
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
        """Return whether a stage is up to date."""
        done = manifest(self.folder(name))
        wanted = declared.made_from(self.config, self.hash_inputs(declared.inputs))
        return done is not None and done["fingerprint"] == wanted.fingerprint(name)

    def refuse_without_order(self) -> None:
        """Refuse next-item prediction on logs without order."""
        refuse_without_order(self.config, f"adagrpo ranker --run {self.called}")

    def events(self) -> list[dict[str, Any]]:
        """Read the events, the source's first: rows of time, stage, event and seconds."""
        return [row for root in self.roots for row in read_events(root)]

    def remark(self, stage: str, sentence: str) -> None:
        """Log a warning about a stage that continues."""
        if self.processes.is_main_process:
            self._event(stage, sentence, 0.0)

    def go_on_alone(self) -> None:
        """Continue in the first process while the others wait."""
        self.followed = False

    def _event(self, stage: str, event: str, seconds: float) -> None:
        append_event(self.directory, stage, event, seconds)
        self.console.stage(stage, event, seconds)


Declare = Callable[[RunDirectory], Declaration]  # declares a stage of a run
