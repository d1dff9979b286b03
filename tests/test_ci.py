"""CI's own steps, with stand-ins for pip and pip-audit: what ends it, and what it says in one line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def install(folder: Path, pip_says: str, status: int, machine: str = "linux x86_64 CPython 3.11") -> Any:
    """`.ci/install` in a folder of its own, with a Python that answers so."""
    shutil.copytree(ROOT / ".ci", folder / ".ci")
    stand_in = folder / "python"
    stand_in.write_text(
        f"""#!/usr/bin/env bash
case "$*" in
  "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  "-m pip install"*) echo "$*" >asked; echo {pip_says!r} >&2; exit {status} ;;
  *) echo {machine!r} ;;
esac
"""
    )
    stand_in.chmod(0o755)
    return subprocess.run(
        [folder / ".ci" / "install"],
        env=os.environ | {"PYTHON": str(stand_in)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_locked_versions_are_installed_with_their_hashes(tmp_path: Path) -> None:
    done = install(tmp_path, "", 0)
    assert done.returncode == 0 and done.stdout.startswith("constraints hold: ")
    asked = (tmp_path / "asked").read_text().split()
    assert {"--require-hashes", "--no-deps", ".ci/constraints.txt"} <= set(asked)


def test_a_file_with_another_hash_ends_ci(tmp_path: Path) -> None:
    # as pip 23 and 26 say it
    done = install(tmp_path, "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", 1)
    assert done.returncode == 1 and "DO NOT MATCH" in done.stderr


def test_a_package_without_a_hash_ends_ci(tmp_path: Path) -> None:
    done = install(tmp_path, "ERROR: Hashes are required in --require-hashes mode, but they are missing", 1)
    assert done.returncode == 1 and "Hashes are required" in done.stderr


def test_a_file_that_cannot_be_had_leaves_it_to_the_ranges(tmp_path: Path) -> None:
    done = install(tmp_path, "ERROR: No matching distribution found for xxhash==4.1.0", 1)
    assert done.returncode == 0 and done.stdout.count("\n") == 1
    assert done.stdout.startswith("constraints skipped, the ranges of pyproject.toml hold: ERROR: No matching")


def test_another_platform_goes_by_the_ranges(tmp_path: Path) -> None:
    done = install(tmp_path, "", 0, machine="darwin arm64 CPython 3.12")
    assert done.returncode == 0 and "this is darwin arm64 CPython 3.12" in done.stdout
    assert not (tmp_path / "asked").exists()


def test_the_lock_names_versions_and_hashes_and_no_place() -> None:
    rows = (ROOT / ".ci" / "constraints.txt").read_text().splitlines()[1:]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+ --hash=sha256:[0-9a-f]{64}", row) for row in rows)
    names = [row.split("==")[0] for row in rows]
    assert names == sorted(set(names)) and "torch" not in names
    assert {"numpy", "polars", "pytest", "pip-audit"} <= set(names)


def audit(folder: Path, answer: str, error: str = "") -> Any:
    """`.ci/audit` with a pip-audit that answers so."""
    (folder / "pip_audit.py").write_text(f"import sys\nprint({answer!r})\nprint({error!r}, file=sys.stderr)\n")
    return subprocess.run(
        [sys.executable, ROOT / ".ci" / "audit"],
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("fixes", "status"), [(["1.1"], 1), ([], 0)])
def test_a_vulnerability_ends_ci_where_a_fix_exists(tmp_path: Path, fixes: list[str], status: int) -> None:
    vulnerable = {"name": "thing", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": fixes}]}
    skipped = {"name": "torch", "skip_reason": "not found"}
    done = audit(tmp_path, json.dumps({"dependencies": [vulnerable, skipped], "fixes": []}))
    assert done.returncode == status
    assert f"thing 1.0: PYSEC-1, fixed in {'1.1' if fixes else 'no version'}" in done.stdout
    assert f"1 of 2 packages audited, {len(fixes)} vulnerabilities with a fix" in done.stdout


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        ("", "ERROR: connection failed", "ERROR: connection failed"),
        ("", "", "it said nothing"),
        (json.dumps({"dependencies": [{"name": "a", "skip_reason": "not found"}]}), "", "knows none of 1 packages"),
    ],
)
def test_an_audit_that_nobody_answers_is_skipped_in_one_line(
    tmp_path: Path, answer: str, error: str, said: str
) -> None:
    done = audit(tmp_path, answer, error)
    assert done.returncode == 0
    assert done.stdout.startswith("pip-audit skipped: ") and said in done.stdout and done.stdout.count("\n") == 1
