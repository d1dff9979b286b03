"""run.yaml: what a run was made of, with a hash of itself and those of the files that belong to no stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from adagrpo.config.yaml_text import read_yaml
from adagrpo.errors import UserError
from adagrpo.storage.artifacts import cached_hash, hash_json, write_file

__all__ = ["DESCRIPTION", "hash_of_output", "outputs", "read_description", "write_description"]

DESCRIPTION = "run.yaml"
OUTPUTS = ("metrics.json", "results.jsonl")  # of the program's own, whose hashes have to be on record


def read_description(directory: Path) -> dict[str, Any]:
    """The content of run.yaml.

    Raises:
        UserError: it is missing, damaged, or not as it was written.
    """
    path = directory / DESCRIPTION
    again = "carry out `adagrpo run` or `adagrpo prepare` again"
    if not path.is_file():
        raise UserError(f"{path}: missing; {again}")
    try:
        content = dict(read_yaml(path))
        recorded = content.pop("sha256")
    except (yaml.YAMLError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: damaged; {again}") from error
    try:
        same = recorded == hash_json(content)
    except (ValueError, TypeError):  # a value that was never written, such as a date
        same = False
    if not same:
        raise UserError(f"{path}: not as it was written; change keys by --set, or {again}")
    return content


def write_description(directory: Path, content: Mapping[str, Any]) -> None:
    """Write run.yaml, with a hash of its content as the last key."""
    text = yaml.safe_dump(dict(content), sort_keys=False)
    digest = hash_json(yaml.safe_load(text))
    write_file(directory / DESCRIPTION, text + yaml.safe_dump({"sha256": digest}))


def hash_of_output(root: Path, name: str) -> str:
    """The hash of a file that belongs to no stage, held against the one in run.yaml; a file of the user's has none.

    Raises:
        UserError: it is not the one that was written.
    """
    digest = cached_hash(root / name)
    if digest != outputs(root).get(name, None if name in OUTPUTS else digest):
        raise UserError(
            f"{root / name}: changed after it was made; run `adagrpo evaluate --run {root}` to have it made again"
        )
    return digest


def outputs(root: Path) -> dict[str, str]:
    """The hashes of the files that belong to no stage, such as metrics.json, by name.

    Raises:
        UserError: run.yaml is damaged.
    """
    return dict(read_description(root).get("outputs", {})) if (root / DESCRIPTION).is_file() else {}
