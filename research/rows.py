"""Rows of a study: kept as they are measured, with the code that measured them.

    python -m research.rows --check [STUDY ...]     says which rows are of older code, and what has changed since
    python -m research.rows --merge ROWS OTHER      adds the rows of the same file in another checkout

A row's `code` is a hash over the modules that were loaded when it was written; `code.json` beside the rows has the
hash of each module. A module's hash leaves out comments and docstrings. Pages and the command line are no part of it,
since they change no figure. What was made in an earlier process, such as a stage that was not made again, is not seen.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.util
import json
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from adagrpo.report.page import read_rows
from adagrpo.storage.writing import write_file

__all__ = ["add_row", "keep_rows", "loaded_code", "merge_rows", "portable", "source_hash", "staleness"]

HERE = Path(__file__).parent
AGAIN = "__mp_main__"  # the main module by the name that multiprocessing gives it beside its own
OURS = ("adagrpo", "research", "benchmarks")
WITHOUT_FIGURES = ("adagrpo.cli", "adagrpo.report", "research.command", "research.pages", "research.rows")


def add_row(results: Path, row: Mapping[str, Any]) -> None:
    """Write the rows that are there and one more in one exchange, so that nothing is added to a line that was cut off.

    Args:
        results: the rows of a study.
        row: the new one; gets its `code`, and a `command` without this machine's folders.
    """
    modules = loaded_code()
    _write(results, [*read_rows(results), _stamped(row, _hash_of(modules))], modules)


def keep_rows(source: Path, kept: Path) -> None:
    """Copy the `results.jsonl` of a run or a comparison to its study; rows of another commit get no `code`."""
    modules, commit = loaded_code(), _commit()
    code = _hash_of(modules)
    rows = [_stamped(row, code if row.get("commit") == commit else None) for row in read_rows(source)]
    _write(kept, rows, modules)


def merge_rows(results: Path, other: Path) -> int:
    """Add the rows that the same file of another checkout has, with the code that measured them; say how many."""
    rows = list(read_rows(results))
    new = [row for row in read_rows(other) if row not in rows]
    _write_rows(results, [*rows, *new])
    used = {row.get("code") for path in results.parent.glob("*.jsonl") for row in read_rows(path)}
    known = _manifests(other) | _manifests(results)
    _write_manifests(results, {code: modules for code, modules in known.items() if code in used})
    return len(new)


def loaded_code() -> dict[str, str]:
    """The hash of each loaded module that a figure may depend on, by name."""
    found = {}
    for name, module in sorted(sys.modules.items()):
        spec = getattr(module, "__spec__", None)
        if name == AGAIN or spec is None or not spec.origin or spec.name.partition(".")[0] not in OURS:
            continue
        if not any(f"{spec.name}.".startswith(f"{package}.") for package in WITHOUT_FIGURES):
            found[spec.name if name == "__main__" else name] = _hash_of_file(Path(spec.origin))
    return found


def portable(command: str) -> str:
    """The command without folders of this machine: data are `DIR`, output is `runs/NAME`.

    Example:
        >>> portable("python -m study --data ../shared/data/toys --out /tmp/fair --sets toys")
        'python -m study --data DIR/toys --out runs/fair --sets toys'
    """
    words = shlex.split(command)
    for place, word in enumerate(words):
        path = PurePosixPath(word)
        if path.is_absolute() or path.parts[:1] == ("..",):
            folder = "runs" if words[place - 1] == "--out" else "DIR"
            words[place] = folder if (folder, path.name) == ("DIR", "data") else f"{folder}/{path.name}"
    return shlex.join(words) if words != shlex.split(command) else command


def staleness(results: Path) -> Iterator[str]:
    """Say of a file of rows which are of older code, one line each.

    Args:
        results: rows of a study.
    """
    known = _manifests(results)
    for code, count in Counter(row.get("code") for row in read_rows(results)).items():
        if code not in known:
            yield f"{count} rows say no code; what changed since is not known"
            continue
        changed = [name for name, digest in known[code].items() if name != AGAIN and _current(name) != digest]
        if changed:
            yield f"{count} rows are of older code; changed since: {', '.join(map(_named, changed))}"


def _stamped(row: Mapping[str, Any], code: str | None) -> dict[str, Any]:
    found = dict(row) | ({"code": code} if code else {})
    return found | ({"command": portable(row["command"])} if row.get("command") else {})


def _write(results: Path, rows: Iterable[Mapping[str, Any]], modules: Mapping[str, str]) -> None:
    _write_manifests(results, _manifests(results) | {_hash_of(modules): dict(modules)})
    _write_rows(results, rows)


def _write_rows(results: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_file(results, "".join(json.dumps(row) + "\n" for row in rows))


def _write_manifests(results: Path, known: Mapping[str, Mapping[str, str]]) -> None:
    write_file(results.with_name("code.json"), json.dumps(known, indent=0, sort_keys=True) + "\n")


def _manifests(results: Path) -> dict[str, dict[str, str]]:
    path = results.with_name("code.json")
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _hash_of(modules: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(modules, sort_keys=True).encode()).hexdigest()[:12]


@cache
def _hash_of_file(path: Path) -> str:
    return source_hash(path.read_text(encoding="utf-8"))


def source_hash(text: str) -> str:
    """The hash of a module's text without comments and docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node, clean=False
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:12]


def _current(module: str) -> str | None:
    """The hash of a module as it is now; None where there is none of that name."""
    path = _path_of(module)
    return None if path is None else _hash_of_file(path)


def _path_of(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec is not None and spec.origin else None


def _named(module: str) -> str:
    """A module with what it is for, the first line of its text."""
    path = _path_of(module)
    text = None if path is None else ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return f"{module} ({text.splitlines()[0] if text else 'gone'})"


def _commit() -> str | None:
    command = ["git", "-C", str(HERE), "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None


def main() -> None:
    """Print what is stale, whose rows stay, or add the rows of another checkout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", nargs="*", metavar="STUDY", help="folders of research; none: all")
    what.add_argument("--merge", nargs=2, metavar=("ROWS", "OTHER"), type=Path)
    given = parser.parse_args()
    if given.merge:
        print(merge_rows(*given.merge))
        return
    studies = given.check or ["."]
    for results in sorted({path for study in studies for path in (HERE / study).rglob("*.jsonl")}):
        for line in staleness(results):
            print(f"{results.relative_to(HERE)}: {line}")


if __name__ == "__main__":
    main()
