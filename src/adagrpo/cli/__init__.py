"""Command line; `accelerate launch -m adagrpo ...` fits models in several processes, of which the first one prints.

Exit codes: 0 success, 2 bad input or usage, 3 a refresh not served, 130 interrupted, 143 terminated, 1 other errors.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from errno import EACCES, EEXIST, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, EPERM, EROFS
from pathlib import Path

import typer

from adagrpo.cli.options import app
from adagrpo.errors import ServiceError, UserError, install
from adagrpo.stopping import Terminated

__all__ = ["app", "main"]

for _module in pkgutil.iter_modules(__path__):
    if _module.name.endswith("_commands"):
        importlib.import_module(f"{__name__}.{_module.name}")

EXTRAS = {  # module of an optional dependency: extra that installs it
    "catboost": "catboost",
    "fastapi": "serve",
    "lightgbm": "lightgbm",
    "peft": "peft",
    "sentence_transformers": "text",
    "tea_tasting": "ab",
    "tensorboard": "track",
    "transformers": "hf",
    "trl": "trl",
    "uvicorn": "serve",
    "xgboost": "xgboost",
}
# errors of the given path, not of the disk
OF_PATHS = {ENOENT, EACCES, EPERM, ENOTDIR, EISDIR, EEXIST, ENAMETOOLONG, EROFS, ELOOP}
# click's usage errors come from click or from typer's copy of it, depending on typer's version
UsageError: type[Exception] = typer.BadParameter.__mro__[1]
LONGEST_MESSAGE = 2000  # characters
INTERRUPTED, TERMINATED = 130, 143  # exit codes of shells; some typer versions return 130, others raise Abort


def main() -> None:
    """Run the command line."""
    try:
        status = app(standalone_mode=False)
    except UserError as error:
        sys.exit(_fail(str(error), 2))
    except ServiceError as error:
        sys.exit(_fail(str(error), 1))
    except UsageError as error:
        message = str(error.format_message()).rstrip(".")  # type: ignore[attr-defined]
        context = getattr(error, "ctx", None)
        command = f" {context.info_name}" if context is not None and context.parent is not None else ""
        sys.exit(_fail(f"{message}; see `adagrpo{command} --help`", 2))
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except Terminated:
        sys.exit(_fail("terminated; the same command continues", TERMINATED))
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name is not None:
            top, file = error.name.partition(".")[0], f"{error.name.replace('.', '/')}.py"
            nowhere = f"module '{error.name}' is neither installed nor a file {file} in {Path.cwd()}"
            sys.exit(_fail(f"{top} is not installed; {install(EXTRAS[top])}" if top in EXTRAS else nowhere, 2))
        if os.environ.get("ADAGRPO_TRACEBACK"):
            raise
        if isinstance(error, OSError) and error.filename is not None and error.errno in OF_PATHS:
            path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else error.filename
            sys.exit(_fail(f"{path}: {(error.strerror or '').lower()}", 2))
        text = " ".join(str(error).split())
        sys.exit(_fail(f"{type(error).__name__}: {text} (ADAGRPO_TRACEBACK=1 shows where)", 1))
    if status == INTERRUPTED:
        _fail("interrupted; the same command continues", status)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int) -> int:
    line = " ".join(message[:LONGEST_MESSAGE].split()) + ("..." if len(message) > LONGEST_MESSAGE else "")
    typer.echo(f"adagrpo: {line}", err=True)
    return status
