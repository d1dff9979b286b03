"""The current files of a run, without stale results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adagrpo.errors import UserError
from adagrpo.pipeline.directory import RunDirectory, events_of, remake_command, trained_arms
from adagrpo.pipeline.named_lists import DECISION
from adagrpo.pipeline.outputs import COLLECTED, DECIDED, is_stale
from adagrpo.pipeline.staleness import parts_of

SHOWN = ("train/", "ranker/report")  # stages shown on the page


class CurrentFiles:
    """The up-to-date files of a run; implements `adagrpo.report.page.RunFiles`."""

    def __init__(self, run: RunDirectory) -> None:
        """Find stale stages; UserError if metrics.json is stale."""
        self.run, self.directory = run, run.directory
        self.parts = parts_of(run, measuring=True)
        path = run.find("metrics.json")
        if path is None:
            place = run.called / "metrics.json"
            why = "`adagrpo decide` writes decision.json alone" if run.find(DECISION) else "nothing is evaluated yet"
            raise UserError(f"{place}: missing, {why}; run {remake_command(run, place.name)} first")
        why = is_stale(run, COLLECTED, self.parts)
        if why:
            raise UserError(f"{run.called}: metrics.json is stale: {why}; run {remake_command(run, 'metrics.json')}")

        self.undecided = is_stale(run, DECIDED, self.parts)

    @property
    def notes(self) -> list[str]:
        """Return a sentence per omission."""
        left_out = [
            part for part in self.parts.values() if part.there and not part.usable and part.name.startswith(SHOWN)
        ]
        kept = [part for part in self.parts.values() if part.usable and part.why]
        return [
            *(f"{part.name} is left out, it is {part.state}: {part.why}." for part in left_out),
            *(f"{part.name}: {part.why}." for part in kept),
            *([f"The decision is left out, it is stale: {self.undecided}."] if self.undecided else []),
        ]

    def find(self, *parts: str) -> Path | None:
        """Find a file unless it is stale, see `RunDirectory.find`."""
        if parts == (DECISION,) and self.undecided:
            return None
        stage = "/".join(parts[:-1])
        return None if stage in self.parts and not self.parts[stage].usable else self.run.find(*parts)

    def trained(self) -> list[str]:
        """List the arms that are up to date."""
        return [arm for arm in trained_arms(self.run) if self.parts[f"train/{arm}"].usable]

    def events(self) -> Sequence[Mapping[str, Any]]:
        """Read the events, see `events_of`."""
        return events_of(self.run)
