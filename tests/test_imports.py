"""The layout of the source: no circles, no verb that needs the libraries of another."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import adagrpo
from adagrpo.cli import EXTRAS

SOURCE = Path(adagrpo.__file__).parent

MODULES = sorted(path for path in SOURCE.rglob("*.py") if not path.name.startswith("__"))


def test_no_imports_go_in_a_circle() -> None:
    names = {".".join(["adagrpo", *path.relative_to(SOURCE).with_suffix("").parts]): path for path in MODULES}
    reads = {name: imported(path) & names.keys() for name, path in names.items()}
    done: set[str] = set()
    while ready := {name for name in reads.keys() - done if reads[name] <= done}:
        done |= ready
    assert reads.keys() - done == set()


def imported(path: Path) -> set[str]:
    """The modules that a module imports, inside functions and for type checkers too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


PROGRAM = """
import sys
for name in {others}:
    sys.modules[name] = None
import {module}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "extra"),
    [("adagrpo.pipeline.serve", "serve"), ("adagrpo.pipeline.recommend", None), ("adagrpo.pipeline.run", None)],
)
def test_a_verb_needs_no_module_of_another_extra(module: str, extra: str | None):
    others = [name for name, own in EXTRAS.items() if own != extra] + ["ray"]
    program = PROGRAM.format(others=others, module=module)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr.splitlines()[-1]
