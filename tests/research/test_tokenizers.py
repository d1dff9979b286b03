"""The benchmark of tokenizers on the tiny world: what is measured, what is not measured twice, what is printed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from adagrpo import metrics
from research.tokenizers import measure as tokenizers


@pytest.fixture
def folder(data: Path, tmp_path: Path) -> Path:
    """The world's data with two columns of published codes, of which one collides, and three tokenizers."""
    folder = Path(shutil.copytree(data, tmp_path / "data"))
    codes = {"good": [[i // 6, i % 6] for i in range(30)], "poor": [[i // 6, 3 * (i % 3)] for i in range(30)]}
    pl.DataFrame({"item_id": [10 * i + 3 for i in range(30)], **codes}).write_parquet(folder / "ids.parquet")
    rows = [{"name": "recipe"}, {"name": "balanced", "set": ["tokenizer.quantizer=balanced_kmeans"]}]
    (folder / "variants.yaml").write_text(yaml.safe_dump(rows), encoding="utf-8")
    return folder


def test_published_columns_are_tried_both_ways_where_items_collide(folder: Path) -> None:
    actual = tokenizers.published(folder, "ids.parquet")
    assert [name for name, _ in actual] == ["published good", "published poor", "published poor, nearest"]
    assert actual[2][1] == ["tokenizer.published={path: ids.parquet, column: poor}", "tokenizer.collisions=nearest"]


@pytest.mark.slow
def test_rows_and_tables(folder: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    results = tmp_path / "rows.jsonl"
    arguments = ["tokenizers", str(folder / "recipe.yaml"), "--data", str(folder), "--out", str(tmp_path / "run")]
    arguments += ["--variants", str(folder / "variants.yaml"), "--results", str(results), "--epochs", "1"]
    monkeypatch.setattr("sys.argv", [*arguments, "--published", "ids.parquet"])
    tokenizers.main()
    rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    names = ["recipe", "balanced", "published good", "published poor", "published poor, nearest"]
    assert [row["tokenizer"] for row in rows] == names
    assert all(row["split"] == "validation" and row["users"] == 60 for row in rows)
    assert rows[3]["audit"]["collision_rate"] == 1 and rows[4]["audit"]["levels"] == 2
    assert str(tmp_path) not in results.read_text(encoding="utf-8").replace(str(folder / "recipe.yaml"), "")
    for row in rows:
        ranks = pl.read_parquet(tokenizers.ranks_file(tmp_path / "run", row["tokenizer"], 0))["rank"].to_numpy()
        assert metrics.hit_rate(ranks, 10).mean() == pytest.approx(row["metrics"]["hr@10"], rel=1e-6)
    printed = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| published poor, nearest |") for line in printed) == 2
    assert "test" not in {row["split"] for row in rows}

    before = results.read_bytes()
    tokenizers.main()
    assert results.read_bytes() == before
    assert capsys.readouterr().out.splitlines() == printed


def test_the_difference_is_paired_and_over_the_means_of_the_seeds(tmp_path: Path) -> None:
    for name, seed, ranks in (("a", 0, [1, 0, 0]), ("a", 1, [1, 1, 0]), ("b", 0, [1, 0, 0]), ("b", 1, [1, 0, 0])):
        path = tokenizers.ranks_file(tmp_path, name, seed)
        path.parent.mkdir(exist_ok=True)
        pl.DataFrame({"rank": np.array(ranks)}).write_parquet(path)
    # by user: 0, 1/2, 0
    assert tokenizers.change(tmp_path, "a", "b", [0, 1], metrics.hit_rate).startswith("+0.1667 (+0.0000 to +0.")
    assert tokenizers.change(tmp_path, "a", "b", [], metrics.hit_rate) == "–"
