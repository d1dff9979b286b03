"""A console that keeps what it is told."""

from __future__ import annotations

from adagrpo.console import Silent


class Heard(Silent):
    """Keeps the notes, and what happens to stages."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.stages: list[tuple[str, str]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def stage(self, name: str, event: str, seconds: float) -> None:
        self.stages.append((name, event))
