"""A part of a run: one of its stages, and whether it is what the run's settings and files would give now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adagrpo.config import Change

__all__ = ["Part", "State"]

State = Literal["done", "stale", "missing", "interrupted", "damaged", "unused"]


@dataclass(frozen=True)
class Part:
    """A stage of a run as it lies there, held against what it would be made from now."""

    name: str
    state: State
    why: str = ""  # why it is not done, in words
    changes: tuple[Change, ...] = ()  # settings that differ
    sources: tuple[str, ...] = ()  # the stages that it is made from
    there: bool = True  # finished at some time

    @property
    def usable(self) -> bool:
        """Whether it may be read as what the run's settings say."""
        return self.state == "done"
