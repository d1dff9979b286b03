"""Plug-ins: modules whose import registers gates and objectives, before commands import `adagrpo.config`.

They are named by `--plugin`, or by entry points of the group `adagrpo.plugins` of installed packages.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

from adagrpo.errors import UserError
from adagrpo.stopping import exit_on_interrupt

GROUP = "adagrpo.plugins"


def load_named(modules: Sequence[str]) -> None:
    """Import the modules of `--plugin`, which may be in the current folder; UserError if one does not load."""
    if modules and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last, so that its files hide no installed module
    for module in modules:
        _load(module, f"--plugin {module}")


def load_installed() -> None:
    """Import the modules of the entry points; UserError if one does not load."""
    for entry in entry_points(group=GROUP):
        _load(entry.module, f"plug-in {entry.name} ({entry.value}) of the entry points {GROUP}")


def _load(module: str, asked: str) -> None:
    try:
        with exit_on_interrupt():  # it may import torch
            importlib.import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            path = f"{module.replace('.', '/')}.py"
            if (file := Path(module)).suffix == ".py" or file.name != module:
                said = f"give the name of a module, {'.'.join(file.with_suffix('').parts)}, and not its path"
            else:
                said = f"neither an installed module nor a file {path} in {Path.cwd()}"
            raise UserError(f"{asked}: {said}") from error
        if os.environ.get("ADAGRPO_TRACEBACK"):
            raise
        # of `register`, a ValueError that says what is wrong
        kind = "" if isinstance(error, ValueError | UserError) else f"{type(error).__name__}: "
        raise UserError(f"{asked}: {kind}{error}") from error
