"""Fingerprints, in run.yaml, of the stages behind metrics.json and decision.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from adagrpo.pipeline.description import DESCRIPTION, read_description
from adagrpo.pipeline.directory import RunDirectory
from adagrpo.pipeline.stage import Part
from adagrpo.storage.artifacts import manifest

COLLECTED, DECIDED = "collected", "decided"  # keys of run.yaml, for metrics.json and decision.json


def record_sources(run: RunDirectory, key: str, stages: Iterable[str]) -> None:
    """Record the stages of a new file."""
    found = {name: manifest(run.folder(name)) for name in stages}
    run.record(key, {name: content["fingerprint"] for name, content in found.items() if content is not None})


def is_stale(run: RunDirectory, key: str, parts: Mapping[str, Part]) -> str:
    """Return why a file does not match the stages in `parts`; empty if it does."""
    noted = read_description(run.path(DESCRIPTION).parent).get(key, {})
    for name, fingerprint in noted.items():
        content = manifest(run.folder(name))
        if content is None or fingerprint != content["fingerprint"]:
            return f"{name} was made again since" if content else f"{name} is missing"
        part = parts.get(name)
        if part is not None and part.there and not part.usable:
            return f"{name} is {part.state} ({part.why})"
    return ""
