"""Which rows are older than the code that they measure: what has changed since the commit that a row carries.

Comments and docstrings do not count. The code of a row is its benchmark and the packages whose cost it is.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from research.rows import source_hash

__all__ = ["CODE", "changed_since", "code_of", "staleness"]

ROOT = Path(__file__).parent.parent
SHOWN = 5  # files of a line
SEARCH = ("decoding", "networks.py", "policies", "semantic_ids")
TRAINING = (*SEARCH, "groups", "objective", "rewards", "trainer")
CODE: Mapping[str, tuple[str, ...]] = {  # by how names of rows begin: the benchmark, then packages of adagrpo
    "adagrpo_vs_nll": ("compact", *TRAINING),
    "beam50_vs_generate": ("causal_lm", *SEARCH),
    "beauty_end_to_end": ("whole", *TRAINING, "data", "evaluation", "pipeline"),
    "decide": ("whole", *TRAINING, "data", "evaluation", "lists", "pipeline"),
    "diagnostics_share": ("diagnostics", *TRAINING),
    "eligible": ("eligible_parts", *SEARCH, "lists"),
    "evaluate_bes": ("beside", *SEARCH, "evaluation"),
    "evaluate_beauty": ("compact", *SEARCH, "evaluation"),
    "evaluate_sleeping": ("beside", *SEARCH, "evaluation"),
    "head": ("item_head", *SEARCH),
    "memory": ("memory", *TRAINING),
    "nll_bf16": ("compact", *SEARCH, "trainer"),
    "prepare": ("whole", "data"),
    "refresh": ("whole", *TRAINING, "data", "evaluation", "lists", "pipeline"),
    "rl_step": ("causal_lm", *TRAINING),
    "scale": ("scale", *TRAINING, "evaluation"),
    "serve": ("serving", *SEARCH, "evaluation", "lists", "rewards", "serving"),
    "train": ("beside", *SEARCH, "trainer"),
}


def staleness(rows: Sequence[Mapping[str, Any]], root: Path = ROOT) -> Iterator[str]:
    """Say of each row of older code what has changed, one line for rows of one benchmark and commit."""
    together: dict[tuple[str | None, tuple[str, ...]], list[str]] = {}
    for row in rows:
        together.setdefault((row["commit"], code_of(row["name"])), []).append(row["name"])
    for (commit, code), names in together.items():
        changed = changed_since(commit, code, root)
        if changed is None:
            yield f"{', '.join(names)}: commit {commit} is not in this checkout; what changed since is not known"
        elif changed:
            more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
            yield f"{', '.join(names)}: of {commit}; changed since: {', '.join(changed[:SHOWN])}{more}"


def code_of(name: str) -> tuple[str, ...]:
    """Return the files and folders whose change makes a row stale, from the root of the checkout."""
    benchmark, *packages = next(code for begin, code in CODE.items() if name.startswith(begin))
    return (f"benchmarks/{benchmark}.py", *(f"src/adagrpo/{package}" for package in packages))


@cache
def changed_since(commit: str | None, code: tuple[str, ...], root: Path = ROOT) -> list[str] | None:
    """Return the files of the code that are no more what they were; None if the commit is not known."""
    asked = _git(root, "diff", "--name-only", "--no-renames", str(commit), "--", *code) if commit else None
    if asked is None:
        return None
    return [name for name in asked.split() if name.endswith(".py") and _before(root, commit, name) != _now(root, name)]


def _before(root: Path, commit: str | None, name: str) -> str | None:
    text = _git(root, "show", f"{commit}:{name}")
    return None if text is None else source_hash(text)


def _now(root: Path, name: str) -> str | None:
    path = root / name
    return source_hash(path.read_text(encoding="utf-8")) if path.is_file() else None


def _git(root: Path, *arguments: str) -> str | None:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None
