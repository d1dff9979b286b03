"""run.yaml: a run's recipe, with hashes of itself and of output files outside stages."""

from __future__ import annotations

import copy
import json
import platform
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from adagrpo import __version__
from adagrpo.config import Config, dump_config
from adagrpo.config.objective import ObjectiveConfig, without_unregistered
from adagrpo.config.yaml_text import dump_yaml, parse_yaml, read_text
from adagrpo.errors import UserError
from adagrpo.objective import GATES
from adagrpo.objective.terms import TERMS
from adagrpo.storage.hashes import cached_hash, hash_json
from adagrpo.storage.writing import write_file

DESCRIPTION = "run.yaml"
PACKAGES = ("torch", "numpy", "accelerate", "polars", "scipy", "safetensors")
# locations and extents of logs
PLACES = ("data.exposures.path", "data.exposures.through", "data.impressions.logs", "data.random.logs")
OUTPUTS = ("metrics.json", "results.jsonl")  # written by the program, so run.yaml must have their hashes


def describe(config: Config, data_files: Mapping[str, str], *, data: Path, code: Path) -> dict[str, Any]:
    """Return the content of run.yaml."""
    content = {
        "config": dump_config(config),
        "arms": config.settings_of_arms(),
        "config_hash": config_hash(config),
        "data_directory": str(data.resolve()),
        "data": dict(data_files),
        "threads": torch.get_num_threads(),
        "versions": {"adagrpo": __version__, "python": platform.python_version()}
        | {name: version(name) for name in PACKAGES},
    }
    imports = config.reward.holds("callable") or config.reward.holds("factory")
    return content | ({"code_directory": str(code)} if imports else {})


def config_hash(config: Config) -> str:
    """Return a configuration's hash, without gates and terms left as they are."""
    content, usual = dump_config(config), ObjectiveConfig().model_dump(mode="json", by_alias=True)
    for name in {*GATES, *TERMS} & usual.keys():
        if content["objective"][name] == usual[name]:
            del content["objective"][name]
    return hash_json(content)


def read_description(directory: Path) -> dict[str, Any]:
    """Read run.yaml; UserError if missing, damaged or edited."""
    path = directory / DESCRIPTION
    again = "carry out `adagrpo run` or `adagrpo prepare` again"
    if not path.is_file():
        raise UserError(f"{path}: missing; {again}")
    try:
        content = _as_json(read_text(path))
    except (yaml.YAMLError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: damaged; {again}") from error
    if content is None:
        raise UserError(f"{path}: not as it was written; change keys by --set, or {again}")
    return dict(json.loads(content))


@lru_cache(maxsize=64)  # a command reads it many times
def _as_json(text: str) -> str | None:  # None: its hash differs
    content = dict(parse_yaml(text, ours=True))
    recorded = content.pop("sha256")
    try:
        return json.dumps(content) if recorded == hash_json(content) else None
    except (ValueError, TypeError):  # a value that is never written, such as a date
        return None


def is_described(directory: Path) -> bool:
    """Return whether run.yaml is intact."""
    try:
        return bool(read_description(directory))
    except UserError:
        return False


def described_config(content: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the configuration in run.yaml without gates and terms that are not registered, and their names."""
    config = copy.deepcopy(dict(content["config"]))
    dropped: dict[str, None] = {}
    for holder, key in [(config, "objective"), *((arm, "options") for arm in config["train"]["arms"])]:
        holder[key], names = without_unregistered(holder.get(key, {}))
        dropped |= dict.fromkeys(names)
    return config, list(dropped)


def kept_settings(directory: Path) -> tuple[dict[str, Any], Path]:
    """Return a run's settings, if run.yaml is intact, and data folder."""
    content = read_description(directory) if is_described(directory) else {}
    return described_config(content)[0] if content else {}, Path(content.get("data_directory", ""))


def reset_settings(directory: Path, config: Config) -> list[str]:
    """Return the `data` keys set in a run but default in `config`."""
    if not is_described(directory):
        return []
    before = Config.model_validate(described_config(read_description(directory))[0])
    return [key for key in data_settings(before) if key not in data_settings(config)]


def write_description(directory: Path, content: Mapping[str, Any]) -> None:
    """Write run.yaml, its hash as the last key."""
    text = dump_yaml(dict(content))
    digest = hash_json(parse_yaml(text, ours=True))
    write_file(directory / DESCRIPTION, text + dump_yaml({"sha256": digest}))


def hash_of_output(root: Path, name: str) -> str:
    """Return an output file's hash; UserError if run.yaml has another."""
    digest = cached_hash(root / name)
    if digest != outputs(root).get(name, None if name in OUTPUTS else digest):
        raise UserError(
            f"{root / name}: changed after it was made; run `adagrpo evaluate --run {root}` to have it made again"
        )
    return digest


def outputs(root: Path) -> dict[str, str]:
    """Return the hashes of output files, by name."""
    return dict(read_description(root).get("outputs", {})) if (root / DESCRIPTION).is_file() else {}


def data_settings(config: Config) -> dict[str, Any]:
    """Return the non-default settings of `data`, without log locations.

    >>> config = Config.model_validate({"data": {"logs": ["a.csv"], "columns": {"user": "uid"}, "max_bad_rows": 3}})
    >>> data_settings(config)
    {'data.columns.user': 'uid', 'data.max_bad_rows': 3}
    """
    said = config.data.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    found: dict[str, Any] = {}
    for name, value in said.items():
        if name in ("columns", "split", "refuse", "exposures", "impressions", "random"):
            found |= {f"data.{name}.{inner}": content for inner, content in value.items()}
        elif name not in ("logs", "marketplace"):
            found[f"data.{name}"] = value
    return {key: value for key, value in found.items() if key not in PLACES}
