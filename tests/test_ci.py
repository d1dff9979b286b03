"""The lock of CI names versions and hashes."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_lock_names_versions_and_hashes_and_no_place() -> None:
    rows = (ROOT / ".ci" / "constraints.txt").read_text().splitlines()[1:]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+ --hash=sha256:[0-9a-f]{64}", row) for row in rows)
    names = [row.split("==")[0] for row in rows]
    assert names == sorted(set(names)) and "torch" not in names
    assert {"numpy", "polars", "pytest", "pip-audit"} <= set(names)
