"""Progress on stderr: a progress bar on a terminal, plain lines elsewhere. Stdout is kept for results."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Protocol

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adagrpo.objective import GroupSummary
from adagrpo.objective.terms import TERMS

LOSSES = ("nll", *TERMS, "loss")
LINE_SECONDS = 15.0


class Console(Protocol):
    """Display of progress; write-only for its callers."""

    def stage(self, name: str, event: str, seconds: float) -> None:
        """Show a stage event: `start`, `end`, `skip`, or any text, shown verbatim."""

    def progress(self, label: str, done: int, total: int, values: Mapping[str, float]) -> None:
        """Show progress within a stage."""

    def note(self, text: str) -> None:
        """Show a line."""


class Silent:
    """A `Console` that shows nothing."""

    def stage(self, name: str, event: str, seconds: float) -> None:
        """Do nothing."""

    def progress(self, label: str, done: int, total: int, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""


class StderrConsole:
    """A `Console` on stderr."""

    def __init__(self) -> None:
        self.console = RichConsole(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self.label = ""
        self.started = self.printed = 0.0
        self.first = 0
        self.bar: Progress | None = None

    def stage(self, name: str, event: str, seconds: float) -> None:
        """Print a line for an event; `start` is shown on a terminal only."""
        self.close()
        if event == "start" and not sys.stderr.isatty():
            return  # so that what is wrong with the input is the only line
        text = {"start": "...", "skip": "unchanged, skipped", "end": f"done in {seconds:.1f} s"}
        self.console.print(f"{name}: {text.get(event, event)}")

    def progress(self, label: str, done: int, total: int, values: Mapping[str, float]) -> None:
        """Advance the bar or, without a terminal, print a line every `LINE_SECONDS`."""
        now = time.monotonic()
        if label != self.label:
            self.close()
            self.label, self.started, self.printed, self.first = label, now, now, done
            if sys.stderr.isatty():
                columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
                self.bar = Progress(*columns, TextColumn("{task.fields[shown]}"), console=self.console, transient=True)
                self.bar.add_task(label, total=total, shown="")
                self.bar.start()
        rate = (done - self.first) / max(1e-9, now - self.started)
        values_shown = {name: values[name] for name in LOSSES if name in values} | GroupSummary.of_row(values).progress
        shown = " ".join(f"{name} {value:.4g}" for name, value in values_shown.items())
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=done, shown=f"{rate:.1f}/s {shown}")
        elif now - self.printed > LINE_SECONDS:
            self.printed = now
            left = (total - done) / rate if rate > 0 else float("inf")
            self.console.print(f"{label}: {done}/{total}, {rate:.1f}/s, {left:.0f} s left {shown}")

    def note(self, text: str) -> None:
        """Print a line."""
        self.close()
        self.console.print(text)

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.stop()
        self.bar, self.label = None, ""
