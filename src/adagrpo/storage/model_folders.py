"""Refusal of model folders that would run code when loaded."""

from __future__ import annotations

import json
from pathlib import Path

from adagrpo.errors import UserError

PICKLED = {".bin", ".ckpt", ".npy", ".npz", ".pkl", ".pickle", ".pt", ".pth"}
NAMES_CODE = ("auto_map", "custom_pipelines")  # keys of configurations that name classes of the folder


def refuse_code(folder: Path, setting: str) -> None:
    """Refuse a model folder, of the key `setting`, whose configuration names code or whose weights are only pickled."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in PICKLED and not any(path.parent.glob("*.safetensors")):
            raise UserError(f"{setting}: {path} would have to be unpickled; save the model as safetensors")
        if path.suffix != ".json" or not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            continue  # its reader will report it
        for key in NAMES_CODE:
            if isinstance(content, dict) and content.get(key):
                raise UserError(f"{setting}: {path} names code of its own ('{key}'); none is run, use a model without")
