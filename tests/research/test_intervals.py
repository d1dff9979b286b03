"""Intervals of comparisons on file follow the present rule, and nothing else of them changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from adagrpo.errors import UserError
from adagrpo.report.comparison_page import read_comparison
from adagrpo.storage.hashes import with_hash
from research.pages.intervals import intervals_into

FILE = Path(__file__).parents[2] / "research/fair_trial/trial-ml-1m.comparison.json"


@pytest.mark.slow
def test_an_interval_of_an_earlier_rule_is_made_anew(tmp_path: Path) -> None:
    shutil.copy(FILE, tmp_path)
    here = tmp_path / FILE.name
    assert intervals_into(tmp_path) == []
    content = read_comparison(here)
    entry = next(row for row in content["rows"] if row["arm"] == "rerank")["against"]["hr@10"]
    narrow = dict(entry) | {"both": [entry["difference"]] * 2, "p": 0.0}
    entry.update(narrow)
    here.write_text(json.dumps(with_hash(content)), encoding="utf-8")
    with pytest.raises(UserError, match=r"trial-ml-1m.comparison.json: intervals of an earlier rule"):
        intervals_into(tmp_path, check=True)
    assert intervals_into(tmp_path) == [here] and intervals_into(tmp_path, check=True) == []
    assert read_comparison(here) == read_comparison(FILE)


def test_a_comparison_without_parts_is_left_alone(tmp_path: Path) -> None:
    content = read_comparison(FILE)
    for row in [*content["rows"], *content["pairs"]]:
        for entry in row["against"].values():
            del entry["variance"]
            entry["p"] = 0.5
    here = tmp_path / FILE.name
    here.write_text(json.dumps(with_hash(content)), encoding="utf-8")
    assert intervals_into(tmp_path) == [] and read_comparison(here) == content
