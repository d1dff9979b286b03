"""Intervals over users and seeds of comparisons on file, made anew by the present rule.

A comparison holds the parts of each variance (`adagrpo.statistics`), so that a change of the rule reaches
rows whose runs are gone: intervals, p-values, margins and verdicts, and nothing that was measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adagrpo.config import CompareConfig
from adagrpo.errors import UserError
from adagrpo.evaluation.comparison import corrected_pairs, give_verdicts, over_both, within_margin
from adagrpo.report.comparison_page import finding, read_comparison
from adagrpo.storage.hashes import with_hash
from adagrpo.storage.writing import write_file

__all__ = ["intervals_into", "made_anew"]


def intervals_into(results: Path, *, check: bool = False) -> list[Path]:
    """Make the intervals of every comparison anew.

    Args:
        results: the folder whose `*.comparison.json` are read, those of its subfolders too.
        check: only compare.

    Returns:
        The files that were written.

    Raises:
        UserError: a file is damaged or, under `check`, has other intervals than its parts have by the present rule.
    """
    stale = {}
    for path in sorted(results.rglob("*.comparison.json")):
        content = read_comparison(path)
        anew = made_anew(content)
        if anew != content:
            stale[path] = anew
    if check and stale:
        raise UserError(f"{', '.join(map(str, stale))}: intervals of an earlier rule; without --check they are written")
    for path, content in stale.items():
        write_file(path, json.dumps(with_hash(content), indent=1, allow_nan=False) + "\n")
    return [*stale]


def made_anew(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a `comparison.json` by the present rule; differences without parts keep what they have."""
    options = CompareConfig.model_validate(content["plan"])
    rows = [row | {"against": _against(row["against"], options)} for row in content["rows"]]
    if not any("variance" in entry for row in rows for entry in row["against"].values()):
        return dict(content)
    for row in rows:
        row["margins"] = {
            name: within_margin(row["against"][name], name, kept["margin"]) for name, kept in row["margins"].items()
        }
    give_verdicts(rows, options)
    anew = {**content, "rows": rows}
    if "pairs" in content:
        pairs = [row | {"against": _against(row["against"], options)} for row in content["pairs"]]
        anew["pairs"] = corrected_pairs(pairs, options)
    return anew | ({"finding": finding(anew)} if "finding" in content else {})


def _against(differences: Mapping[str, Any], options: CompareConfig) -> dict[str, Any]:
    return {name: _difference(entry, options) if "variance" in entry else entry for name, entry in differences.items()}


def _difference(entry: Mapping[str, Any], options: CompareConfig) -> dict[str, Any]:
    """The entry with the interval of its parts, or as it is where that differs by rounding."""
    users, rest = entry["variance"]["users"], entry["variance"]["rest"]
    anew = over_both(entry["by_seed"], users, rest, options.level)
    same = np.allclose([*anew["both"], anew["p"]], [*entry["both"], entry["p"]], rtol=1e-6, atol=1e-9)
    return dict(entry) if same else {**entry, **anew}
