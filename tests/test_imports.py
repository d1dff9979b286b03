"""What must not occur in the source: ways to run code that came with data, and printing outside the command line."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import adagrpo
from adagrpo.cli import EXTRAS

SOURCE = Path(adagrpo.__file__).parent
UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"}
UNSAFE_FLAGS = {"allow_pickle", "trust_remote_code"}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def problems(tree: ast.AST, *, may_print: bool = False) -> Iterator[str]:
    """What a module does that it must not, each with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (f"{node.lineno}: {name}" for name in names if name.split(".")[0] in UNSAFE_MODULES)
            if isinstance(node, ast.ImportFrom):
                calls = (f"{node.module}.{alias.name}" for alias in node.names)
                yield from (f"{node.lineno}: {call}" for call in calls if call in UNSAFE_CALLS)
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            if name in UNSAFE_CALLS or name.endswith(".read_pickle") or (name == "print" and not may_print):
                yield f"{node.lineno}: {name}("
            for keyword in node.keywords:
                off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg in UNSAFE_FLAGS and not off:
                    yield f"{node.lineno}: {keyword.arg}"


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_nothing_is_unpickled_or_evaluated_and_only_the_command_line_prints(path: Path) -> None:
    may_print = path.parent == SOURCE / "cli" or path == SOURCE / "console.py"
    assert list(problems(ast.parse(path.read_text(encoding="utf-8")), may_print=may_print)) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load('x')",
        "from torch import load",
        "np.load('x', allow_pickle=True)",
        "AutoModel.from_pretrained('x', trust_remote_code=flag)",
        "yaml.load(text, Loader=yaml.Loader)",
        "eval('1')",
        "exec('1')",
        "print('x')",
    ],
)
def test_the_search_finds(line: str) -> None:
    assert list(problems(ast.parse(line)))


def test_the_search_spares_what_is_safe() -> None:
    assert not list(problems(ast.parse("yaml.safe_load(t); policy.eval(); np.load('x', allow_pickle=False)")))


# ---------------------------------------------------------------- the layout

MODULES = sorted(path for path in SOURCE.rglob("*.py") if not path.name.startswith("__"))


def test_no_two_modules_share_a_name() -> None:
    stems = [path.stem for path in MODULES]
    assert {stem for stem in stems if stems.count(stem) > 1} == set()


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


@pytest.mark.parametrize(
    ("module", "extra"),
    [("adagrpo.pipeline.serve", "serve"), ("adagrpo.pipeline.recommend", None), ("adagrpo.pipeline.run", None)],
)
def test_a_verb_needs_no_module_of_another_extra(module: str, extra: str | None):
    others = [name for name, own in EXTRAS.items() if own != extra] + ["ray"]
    program = PROGRAM.format(others=others, module=module)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr.splitlines()[-1]
