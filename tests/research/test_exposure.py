"""The studies of exposure bias and propensities: what is not run again, and what propensities are joined to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from adagrpo.report.page import read_rows
from research.exposure_bias import measure as exposure_bias
from research.random_exposure import propensity


@pytest.mark.slow
def test_what_has_a_row_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, asked = tmp_path / "results" / "rows.jsonl", []

    def measure(directory: Path, bias: float, seed: int, settings: Any) -> dict[str, Any]:
        asked.append((bias, seed, directory.name))
        return {"exposure_bias": bias, "seed": seed}

    monkeypatch.setattr(exposure_bias, "measure", measure)
    exposure_bias.carry_out(tmp_path, results, [0.0, 1.5], [0], ())
    with results.open("a", encoding="utf-8") as file:
        file.write('{"exposure_bias": 0.0, "se')  # killed while it wrote
    exposure_bias.carry_out(tmp_path, results, [0.0, 1.5], [0, 1], ())
    assert asked == [
        *((0.0, 0, "bias-0-seed-0"), (1.5, 0, "bias-1.5-seed-0")),
        *((0.0, 1, "bias-0-seed-1"), (1.5, 1, "bias-1.5-seed-1")),
    ]
    assert [(r["exposure_bias"], r["seed"]) for r in read_rows(results)] == [
        (0, 0),
        (1.5, 0),
        (0, 1),
        (1.5, 1),
    ]


def test_propensities_are_joined_to_what_they_are_of(tmp_path: Path) -> None:
    for name in ("coat", "slate-sim"):
        (tmp_path / name).mkdir()
    pl.DataFrame({"user_id": [0, 0, 1], "item_id": [5, 6, 5], "rating": [1, 2, 3]}).write_parquet(
        tmp_path / "coat" / "ratings.parquet"
    )
    pl.DataFrame({"user_id": [1, 0, 0], "item_id": [5, 6, 5], "propensity": [0.3, 0.2, 0.1]}).write_parquet(
        tmp_path / "coat" / "propensities.parquet"
    )
    pl.DataFrame({"item_id": [5]}).write_parquet(tmp_path / "coat" / "items.parquet")
    pl.DataFrame({"user_id": [0, 1, 1, 2, 3], "item_id": [7, 7, 8, 8, 8]}).write_parquet(
        tmp_path / "slate-sim" / "impressions.parquet"
    )
    pl.DataFrame({"item_id": [7]}).write_parquet(tmp_path / "slate-sim" / "random_ratings.parquet")
    folders = propensity.with_propensities(tmp_path, tmp_path / "out")
    coat = pl.read_parquet(folders["coat"] / "ratings.parquet")
    assert coat["propensity"].to_list() == [0.1, 0.2, 0.3] and coat["rating"].to_list() == [1, 2, 3]
    shown = pl.read_parquet(folders["slate-sim"] / "impressions.parquet")
    np.testing.assert_allclose(shown["propensity"], [0.5, 0.5, 0.75, 0.75, 0.75])
    assert json.dumps(sorted(path.name for path in folders["slate-sim"].iterdir())) == (
        '["impressions.parquet", "random_ratings.parquet"]'
    )
