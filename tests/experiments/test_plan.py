from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from adagrpo.errors import UserError
from adagrpo.experiments.plan import freeze, frozen_path, read_catalogue, read_plan

NOW = datetime(2026, 11, 1, tzinfo=UTC)


def written(path: Path, **changes: Any) -> Path:
    content = {
        "name": "gated",
        "arms": {"now": {"serves": "sft"}, "new": {"serves": "gated"}},
        "control": "now",
        "salt": "2026-11",
        "start": "2026-11-08",
        "days": 14,
        "metrics": {"clicks": {"sum": "click"}, "ctr": {"sum": "click", "per": "impressions"}},
    }
    path.write_text(yaml.safe_dump(content | changes), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"wieght": 1}, "unknown key 'wieght'; valid keys here: "),
        ({"control": "old"}, "control: 'old' is none of the arms new, now"),
        ({"arms": {"now": {"serves": "sft"}}}, "arms: 1; an experiment has at least two"),
        ({"looks": "daily"}, "answers: say how many are expected"),
        ({"rule": {"metrics": ["sales"]}}, "rule.metrics: 'sales' is none of the metrics clicks, ctr"),
        ({"metrics": {"ctr": {"sum": "click", "per": "answers", "cuped": True}}}, "metrics.ctr.cuped: is for a number"),
        ({"metrics": {"ctr": {"summ": "click"}}}, "unknown key 'metrics.ctr.summ'; did you mean 'sum'?"),
        (
            {"arms": {"now": {"serves": "sft", "weight": 0}, "new": {"serves": "a"}}},
            "arms.now.weight: Input should",
        ),
        ({"days": 10**9}, "days: Input should be less than or equal to 1000"),
        ({"start": "0001-01-01"}, "start: Input should be greater than or equal to 1970-01-01"),
        ({"days": 0}, "days: Input should be greater than or equal to 1"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_one_line(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    path = written(tmp_path / "plan.yaml", **changes)
    with pytest.raises(UserError, match=re.escape(f"{path}: {says}")):
        read_plan(path)


@pytest.mark.parametrize("text", ["", "- a", "a: [", "\x00"])
def test_what_is_no_plan_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(str(path))):
        read_plan(path)
    with pytest.raises(UserError, match="no such plan"):
        read_plan(tmp_path / "other.yaml")


def test_a_frozen_plan_may_get_comments_and_nothing_else(tmp_path: Path) -> None:
    path = written(tmp_path / "plan.yaml")
    first = freeze(path, read_plan(path), now=NOW)
    path.write_text("# why\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    assert freeze(path, read_plan(path), now=datetime(2027, 1, 1, tzinfo=UTC)) == first
    assert first["time"] == "2026-11-01T00:00:00+00:00"
    written(path, alpha=0.1)
    with pytest.raises(UserError, match=r"plan\.yaml: was changed after it was frozen on 2026-11-01"):
        freeze(path, read_plan(path), now=NOW)


def test_the_catalogue_is_frozen_with_the_plan(tmp_path: Path) -> None:
    path = written(tmp_path / "plan.yaml", catalogue="items.txt")
    with pytest.raises(UserError, match=r"items\.txt: cannot be read"):
        freeze(path, read_plan(path), now=NOW)
    (tmp_path / "items.txt").write_text("a\nb\n", encoding="utf-8")
    freeze(path, read_plan(path), now=NOW)
    (tmp_path / "items.txt").write_text("a\nb\nc\n", encoding="utf-8")
    with pytest.raises(UserError, match="was changed"):
        freeze(path, read_plan(path), now=NOW)


def test_a_mark_of_the_byte_order_is_of_no_item(tmp_path: Path) -> None:
    path = written(tmp_path / "plan.yaml", catalogue="items.txt")
    (tmp_path / "items.txt").write_bytes(b"a\r\nb\r\n")
    first = freeze(path, read_plan(path), now=NOW)
    (tmp_path / "items.txt").write_bytes(b"\xef\xbb\xbfa\nb\n")
    assert read_catalogue(path, read_plan(path)) == {"a", "b"}
    assert freeze(path, read_plan(path), now=NOW) == first


def test_a_hash_that_was_changed_by_hand_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "plan.yaml")
    freeze(path, read_plan(path), now=NOW)
    beside = frozen_path(path)
    beside.write_text(beside.read_text(encoding="utf-8").replace("2026", "2025"), encoding="utf-8")
    with pytest.raises(UserError, match="is not as it was written"):
        freeze(path, read_plan(path), now=NOW)
