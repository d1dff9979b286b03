"""Folders of models made elsewhere are data, not code: what would run something when it is read is refused before.

Libraries differ in what they do with a folder that brings code: some ask on the terminal, some run it if an option says
so. Here nothing gets that far.
"""

from __future__ import annotations

import json
from pathlib import Path

from adagrpo.errors import UserError

PICKLED = {".bin", ".ckpt", ".npy", ".npz", ".pkl", ".pickle", ".pt", ".pth"}
NAMES_CODE = ("auto_map", "custom_pipelines")  # keys of configurations that name classes of the folder


def refuse_code(folder: Path, setting: str) -> None:
    """Check that a model folder, which the key `setting` of a recipe names, can be read without running anything in it.

    Raises:
        UserError: a configuration names code of its own, or there are weights that would have to be unpickled and no
            safetensors beside them; the file is named. Code that nothing names is not run, and may lie there.
    """
    for path in sorted(folder.rglob("*")):
        if path.suffix in PICKLED and not any(path.parent.glob("*.safetensors")):
            raise UserError(f"{setting}: {path} would have to be unpickled; save the model as safetensors")
        if path.suffix == ".json" and path.is_file():
            _refuse_named_code(path, setting)


def _refuse_named_code(path: Path, setting: str) -> None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return  # its reader will say so
    for key in NAMES_CODE:
        if isinstance(content, dict) and content.get(key):
            raise UserError(f"{setting}: {path} names code of its own ('{key}'); none is run, use a model without")
