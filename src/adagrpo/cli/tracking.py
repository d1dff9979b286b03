"""`--track tensorboard[:DIR]`: log training to any tracker of Accelerate, a run of it for each fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType

from adagrpo.console import StderrConsole
from adagrpo.errors import UserError, install
from adagrpo.pipeline import Console

FITTED = "learning_rate"  # logged by every step of a fit, and only there


class TrackingConsole:
    """Console that forwards to another one and to a tracker, `NAME` or `NAME:DIR`, by default in the run directory."""

    def __init__(self, shown: Console, text: str, directory: Path) -> None:
        name, _, folder = text.partition(":")
        known = [str(kind) for kind in LoggerType.list() if str(kind) != "all"]
        if name not in known:
            raise UserError(f"--track {name}: no such tracker; there are {', '.join(known)}")
        if name not in map(str, get_available_trackers()):
            how = install("track") if name == "tensorboard" else f"pip install {name}"
            raise UserError(f"--track {name}: is not installed; {how}")
        self.shown, self.kind, self.folder = shown, name, Path(folder) if folder else directory / name
        self.label = ""
        self.tracker: Any = None  # accelerate has no types

    def stage(self, name: str, event: str, seconds: float) -> None:
        """See `Console.stage`; ends the tracker run."""
        if event != "start":
            self._end()
        self.shown.stage(name, event, seconds)

    def progress(self, label: str, done: int, total: int, values: Mapping[str, float]) -> None:
        """See `Console.progress`."""
        self.shown.progress(label, done, total, values)
        if FITTED not in values:
            return
        if label != self.label or self.tracker is None:
            self._end()
            kind = LOGGER_TYPE_TO_CLASS[self.kind]
            self.label = label
            self.tracker = kind(label, self.folder) if kind.requires_logging_directory else kind(label)
            self.tracker.start()
        self.tracker.log(dict(values), step=done)

    def note(self, text: str) -> None:
        """See `Console.note`."""
        self.shown.note(text)

    def close(self) -> None:
        """Close the tracker."""
        self._end()
        if isinstance(self.shown, StderrConsole):
            self.shown.close()

    def _end(self) -> None:
        if self.tracker is not None:
            self.tracker.finish()
        self.tracker = None
