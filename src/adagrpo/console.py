"""Progress on stderr while a run goes on: a progress bar with rate and time left, or plain lines.

Stdout is kept for results, so that a command's output can be piped.
"""

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
    """A display of progress. Nothing that a caller reads back goes through it."""

    def stage(self, name: str, event: str, seconds: float) -> None:
        """A stage starts (`start`), ends (`end`), is skipped (`skip`), or what else happens to it, in words."""
        ...

    def progress(self, label: str, done: int, total: int, values: Mapping[str, float]) -> None:
        """Work within a stage went on."""
        ...

    def note(self, text: str) -> None:
        """Something is worth a line."""
        ...


class Silent:
    """Shows nothing."""

    def stage(self, name: str, event: str, seconds: float) -> None:
        """Nothing."""

    def progress(self, label: str, done: int, total: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


class StderrConsole:
    """Implements `Console`."""

    def __init__(self) -> None:
        self.console = RichConsole(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self.label = ""
        self.started = self.printed = 0.0
        self.first = 0
        self.bar: Progress | None = None

    def stage(self, name: str, event: str, seconds: float) -> None:
        """One line for a stage that ends or is skipped, or for a remark, and on a terminal for one that starts."""
        self.close()
        if event == "start" and not sys.stderr.isatty():
            return  # so that what is wrong with the input is the only line
        text = {"start": "...", "skip": "unchanged, skipped", "end": f"done in {seconds:.1f} s"}
        self.console.print(f"{name}: {text.get(event, event)}")

    def progress(self, label: str, done: int, total: int, values: Mapping[str, float]) -> None:
        """Advance the bar, or print a line now and then where stderr is no terminal."""
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
        told = {name: values[name] for name in LOSSES if name in values} | GroupSummary.of_row(values).progress
        shown = " ".join(f"{name} {value:.4g}" for name, value in told.items())
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=done, shown=f"{rate:.1f}/s {shown}")
        elif now - self.printed > LINE_SECONDS:
            self.printed = now
            left = (total - done) / rate if rate > 0 else float("inf")
            self.console.print(f"{label}: {done}/{total}, {rate:.1f}/s, {left:.0f} s left {shown}")

    def note(self, text: str) -> None:
        """One line."""
        self.close()
        self.console.print(text)

    def close(self) -> None:
        """Take the bar down."""
        if self.bar is not None:
            self.bar.stop()
        self.bar, self.label = None, ""
