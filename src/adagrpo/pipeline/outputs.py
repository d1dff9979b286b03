"""Entries of a run's run.yaml, and the files outside its stages that they vouch for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from adagrpo.errors import UserError
from adagrpo.pipeline.description import DESCRIPTION, describe, outputs, read_description, write_description
from adagrpo.pipeline.directory import RunDirectory, folder_of, locked
from adagrpo.pipeline.stage import Part
from adagrpo.storage.artifacts import manifest
from adagrpo.storage.hashes import cached_hash
from adagrpo.storage.writing import write_file
from adagrpo.trainer.processes import processes

COLLECTED, DECIDED = "collected", "decided"  # fingerprints of the stages behind metrics.json and decision.json


def keep_settings(
    run: RunDirectory, data_files: Mapping[str, str] | None = None, also: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Write a command's settings into run.yaml, and with `data_files` the hashes of logs."""
    if not processes().is_main_process:
        return
    kept: dict[str, Any] = {}
    with suppress(UserError) if data_files is not None else nullcontext():  # a damaged file is made anew
        kept = read_description(run.path(DESCRIPTION).parent)
    content = describe(run.config, kept["data"] if data_files is None else data_files, data=run.data, code=run.code)
    also = {**also, **({"catalog": run.catalog} if run.catalog else {})}
    changed = [key for key, value in (content | also).items() if kept.get(key) != value]
    if data_files is None and {*changed} <= {"threads", "versions"}:
        return
    same_reward = kept and kept["config"].get("reward") == content["config"]["reward"]
    names = ("outputs", COLLECTED, DECIDED, "catalog", *(("reward",) if same_reward else ()))
    with locked(run):
        write_description(run.directory, content | {name: kept[name] for name in names if name in kept} | also)


def record(run: RunDirectory, key: str, value: Any) -> None:
    """Add an entry to run.yaml."""
    if not processes().is_main_process:
        return
    with locked(run):
        content = read_description(run.path(DESCRIPTION).parent)
        if content.get(key) != value:
            write_description(run.directory, content | {key: value})


def write_output(run: RunDirectory, name: str, text: str) -> Path:
    """Write a file outside stages and its hash into run.yaml."""
    with locked(run):
        path = run.directory / name
        write_file(path, text)
        record(run, "outputs", outputs(run.directory) | {name: cached_hash(path)})
    return path


def record_sources(run: RunDirectory, key: str, stages: Iterable[str]) -> None:
    """Record the stages of a new file."""
    found = {name: manifest(folder_of(run, name)) for name in stages}
    record(run, key, {name: content["fingerprint"] for name, content in found.items() if content is not None})


def is_stale(run: RunDirectory, key: str, parts: Mapping[str, Part]) -> str:
    """Return why a file does not match the stages in `parts`; empty if it does."""
    noted = read_description(run.path(DESCRIPTION).parent).get(key, {})
    for name, fingerprint in noted.items():
        content = manifest(folder_of(run, name))
        if content is None or fingerprint != content["fingerprint"]:
            return f"{name} was made again since" if content else f"{name} is missing"
        part = parts.get(name)
        if part is not None and part.there and not part.usable:
            return f"{name} is {part.state} ({part.why})"
    return ""
