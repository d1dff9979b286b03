"""A run directory: how it is opened and described, and how a stage is made; `run_folder` has how its files are read.

A run is marked as one (`adagrpo.storage.marks`); a folder that holds anything else is refused, untouched. A stage is a
folder (`adagrpo.pipeline.stage`). Its manifest carries a fingerprint: the hash of the settings that decide its result,
of the files it reads, and of the number of its schema. `RunDirectory.make` skips a stage whose fingerprint is
unchanged. One that was interrupted goes on from what its work folder holds, if that was begun under the same
fingerprint.

run.yaml has the settings of the work that was done. What a command changes by `--set` holds for that command, and is
written when all of its work is done (`RunDirectory.keep_settings`).

A run may go on from another one that it never writes to: what it lacks is read there (`adagrpo evaluate --out`).

Where several processes were launched, the first one alone holds the lock and writes; the others take part in the stages
that fit a model and wait for the end of every other one, see `RunDirectory.make`.
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
from adagrpo.pipeline.description import DESCRIPTION, describe, outputs, read_description, write_description
from adagrpo.pipeline.events import append_event, cut_half_line, read_events
from adagrpo.pipeline.run_folder import RunFolder
from adagrpo.pipeline.stage import Declaration, StageFolder
from adagrpo.storage.artifacts import manifest, verify
from adagrpo.storage.hashes import cached_hash, hash_json
from adagrpo.storage.locks import lock_folder
from adagrpo.storage.marks import MARK, check_kind, is_marked, read_mark
from adagrpo.storage.writing import write_file
from adagrpo.trainer.processes import processes

BUILD, DONE = "build", "done"  # what the first process sends to the others during a stage


def refuse_without_order(config: Config, command: str) -> None:
    """Refuse what predicts a next item where nothing says what came next; `command` is what there is to do instead.

    Raises:
        UserError: its logs are impressions without order.
    """
    if config.without_order:
        raise UserError(
            "data.split.kind: impressions has no order, so no next item for a policy to learn;"
            f" `{command}` fits and examines the ranker"
        )


class RunDirectory(RunFolder):
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
            UserError: the directory holds something else than a run, or an arm of the recipe has the name of a list.
        """
        check_kind(directory, "run")
        for arm in config.train.arms:
            if parse_list(arm.name).policy is None:
                raise UserError(f"train.arms: '{arm.name}' is the name of a list; take another")
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
        run.called, run.overrides = called, tuple(map(in_section, overrides))
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
        """Return whether a stage is there and up to date."""
        done = manifest(self.folder(name))
        wanted = declared.made_from(self.config, self.hash_inputs(declared.inputs))
        return done is not None and done["fingerprint"] == wanted.fingerprint(name)

    def refuse_without_order(self) -> None:
        """Refuse what predicts a next item where nothing says what came next.

        Raises:
            UserError: the logs are impressions without order.
        """
        refuse_without_order(self.config, f"adagrpo ranker --run {self.called}")

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

    def _event(self, stage: str, event: str, seconds: float) -> None:
        append_event(self.directory, stage, event, seconds)
        self.console.stage(stage, event, seconds)


Declare = Callable[[RunDirectory], Declaration]  # what a stage of a run is made from, and how
