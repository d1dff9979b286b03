"""Base class of `Run`: locking and making stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from adagrpo.config.reward import SequentialOptions
from adagrpo.console import StderrConsole
from adagrpo.errors import UserError
from adagrpo.lists.recommender import Recommender
from adagrpo.pipeline.checks import check
from adagrpo.pipeline.current_files import CurrentFiles
from adagrpo.pipeline.description import DESCRIPTION, is_described
from adagrpo.pipeline.diagnosed import check_diagnosis
from adagrpo.pipeline.directory import RunDirectory
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.output_sources import COLLECTED, record_sources
from adagrpo.pipeline.rewards import check_reward, describe_reward, first_look
from adagrpo.pipeline.stage_table import RUN, declared, row_of
from adagrpo.pipeline.stages.evaluate import collect
from adagrpo.pipeline.stages.exposure_report import collect_exposures
from adagrpo.pipeline.staleness import finished_arms, left_out_arms, made_again, stages_of
from adagrpo.report import write_report


class StageMaker(RunDirectory):
    """A run directory that makes stages."""

    @cached_property
    def _ready(self) -> set[str]:
        """Shared stages known to be up to date in this command."""
        return set()

    @cached_property
    def _served(self) -> dict[tuple[Any, ...], tuple[Any, Recommender, dict[str, Any]]]:
        """Recommenders cached by `recommend`, and what they were made from."""
        return {}

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Lock the directory, and clear the cache of `recommend` afterwards."""
        self._served.clear()
        self._ready.clear()
        try:
            with self.locked():
                yield
        finally:
            if isinstance(self.console, StderrConsole):
                self.console.close()

    @contextmanager
    def _doing(self, command: str) -> Iterator[None]:
        """Run a command; run.yaml takes its settings only on success."""
        if command not in ("prepare", "ranker"):
            self.refuse_without_order()
        with self._working():
            if self.processes.is_main_process and command != "prepare":
                check(self, command)
            yield
            if is_described(self.path(DESCRIPTION).parent):
                self.keep_settings()

    def _note_made_again(self, commands: Sequence[str] | None) -> None:
        """Report which finished stages of some commands (None: all) will be rebuilt."""
        for part in made_again(self):
            row = row_of(part.name)
            if commands is None or (row is not None and row.command in commands):
                self.console.note(f"note: {part.name} is made again, with what is made from it: {part.why}")

    def _make(self, command: str, arms: Sequence[str] | None = None, *, but: str = "") -> None:
        """Make a command's stages, except `but`, in table order."""
        for name, declare in stages_of(self, [command], arms).items():
            if name == but or name in self._ready:
                continue
            wanted = declare(self)
            self.make(name, wanted)
            if (row := row_of(name)) is not None and row.shared:
                self._ready.add(name)
            if name == "prepare" and (name in self.made or not is_described(self.directory)):
                self._describe(wanted.inputs)

    def _describe(self, logs: Sequence[Path]) -> None:
        by_name = {path.name: path for path in logs}
        several = len(by_name) < len(logs)  # same name in different folders
        hashes = {name: self.hash_input(path) for name, path in by_name.items()}
        self.write_description(self.hash_inputs(logs) if several else hashes)

    def _train(self, *, anyway: bool) -> None:
        if self.config.without_order:
            return
        self._look_at_reward()
        check_diagnosis(self, anyway=anyway)
        self._make("train")

    def _look_at_reward(self) -> None:
        data = RunData(self)
        models = Models(data)
        for path in [*data.training_files, *data.catalog_files, self.path("sft", "best", "model.safetensors")]:
            self.hash_input(path)  # names the first missing stage
        if self.config.reward == SequentialOptions():
            check_reward(models)
        elif "reward" not in self._ready:
            self.make("reward", first_look(self))
            self._ready.add("reward")
        self.note("reward", describe_reward(models))

    def _evaluate(self, arms: list[str] | None = None) -> None:
        """Evaluate some arms; None: all that are up to date."""
        if not self.config.without_order:
            self._look_at_reward()
        arms = finished_arms(self) if arms is None else arms
        self._make("evaluate", arms)
        self._collect(arms)

    def _collect(self, arms: list[str]) -> None:
        if self.config.without_order:
            collect_exposures(self)
        else:
            left_out = left_out_arms(self)
            for arm, why in left_out.items():
                self.console.stage(f"train/{arm}", f"left out: {why}", 0.0)
            collect(self, arms, left_out)
        stages = {name: row_of(name) for name in declared(self.config, RUN, arms)}
        shown = [name for name, row in stages.items() if row is not None and not row.page_only]
        record_sources(self, COLLECTED, shown)

    def _renew_report(self) -> None:
        if (self.directory / "report.html").is_file():
            try:
                self._write_report()
            except UserError as error:  # its other content is stale
                self.console.note(f"report.html is left as it is: {error}")

    def _write_report(self) -> Path:
        shown = CurrentFiles(self)
        return write_report(shown, shown.notes)
