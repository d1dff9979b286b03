"""The sources of metrics.json and decision.json: the fingerprint of each stage that they are of, in run.yaml."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from adagrpo.pipeline.description import DESCRIPTION, read_description
from adagrpo.pipeline.directory import RunDirectory
from adagrpo.pipeline.stage import Part
from adagrpo.storage.artifacts import manifest

COLLECTED, DECIDED = "collected", "decided"  # keys of run.yaml, of metrics.json and of decision.json


def record_sources(run: RunDirectory, key: str, stages: Iterable[str]) -> None:
    """Note from which stages a file that was just written was gathered."""
    found = {name: manifest(run.folder(name)) for name in stages}
    run.record(key, {name: content["fingerprint"] for name, content in found.items() if content is not None})


def is_stale(run: RunDirectory, key: str, parts: Mapping[str, Part]) -> str:
    """Say why a file is not of the stages that are there and up to date; empty where it is.

    Args:
        parts: of the run, see `adagrpo.pipeline.staleness.parts_of`.
    """
    noted = read_description(run.path(DESCRIPTION).parent).get(key, {})
    for name, fingerprint in noted.items():
        content = manifest(run.folder(name))
        if content is None or fingerprint != content["fingerprint"]:
            return f"{name} was made again since" if content else f"{name} is missing"
        part = parts.get(name)
        if part is not None and part.there and not part.usable:
            return f"{name} is {part.state} ({part.why})"
    return ""
