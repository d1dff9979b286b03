"""The studies of exposure bias and propensities: what is not run again, and what is printed of the rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from adagrpo.report import read_rows
from research.exposure_bias import measure as exposure_bias
from research.exposure_bias import tables as exposure_tables
from research.random_exposure import propensity


def interval(mean: float, users: int = 100) -> dict[str, float]:
    return {"mean": mean, "low": mean, "high": mean, "users": users}


def row(bias: float, seed: int) -> dict[str, Any]:
    """Accuracy .7 in admitted groups, .6 and .1 more a seed in rejected ones; the gate `all` rejects hardly any."""
    gates = {
        gate: {
            "admitted": 0.25,
            "pairwise_accuracy": {"admitted": interval(0.7), "rejected": interval(0.6 + 0.1 * seed, users)},
        }
        for gate, users in (
            (gate, 3 if gate == "all" else 100) for gate in ("all", "difficulty", *exposure_tables.CONTROLS)
        )
    }
    strata = [
        {"by": "all", "stratum": "all", "true_correlation": interval(0.3 + bias / 10)},
        {"by": "item popularity", "stratum": "tail", "true_correlation": None},
    ]
    arms = {
        arm: {"true_utility@10": value + seed, "mean_reward@10": -value, "hr@10": 0.5, "hallucination@10": 0.1}
        for arm, value in (("sft", 0.1), ("nll", 0.2), ("mixture", 0.25), ("adagrpo", 0.3))
    }
    rewards = {reward: {"gates": gates} for reward in exposure_tables.REWARDS}
    return {"exposure_bias": bias, "seed": seed, "strata": strata, "gate": rewards, "arms": arms}


def test_what_has_a_row_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, asked = tmp_path / "results" / "rows.jsonl", []

    def measure(directory: Path, bias: float, seed: int, settings: Any) -> dict[str, Any]:
        asked.append((bias, seed, directory.name))
        return row(bias, seed)

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


def test_differences_are_taken_within_a_seed() -> None:
    rows = [row(bias, seed) for bias in (0.0, 1.0) for seed in (0, 1)]
    tables = exposure_tables.tables(rows)
    assert tables["Correlation with true utility"].rows[0] == (
        "all",
        "0.300 (0.300 to 0.300)",
        "0.400 (0.400 to 0.400)",
    )
    assert tables["Correlation with true utility"].rows[3] == ("tail", "–", "–")
    utility = {cells[0]: cells[1] for cells in tables["true_utility@10"].rows}
    assert utility["mixture - nll"] == "0.0500 (0.0500 to 0.0500)"  # though the seeds are 1 apart
    gates = {cells[:2]: cells[2:] for cells in tables["Every gate, mean over the biases"].rows}
    assert gates["all users", "adagrpo"][:2] == ("25.0 % (25.0 % to 25.0 %)", "70.0 % (70.0 % to 70.0 %)")
    half = 12.706 * 0.05  # t of one degree of freedom times the standard error of 0 and -.1, negated
    assert gates["all users", "adagrpo"][3] == f"+0.050 ({0.05 - half:+.3f} to {0.05 + half:+.3f})"
    assert gates["cross-fitted", "all"][2:] == ("–", "–")  # three groups say nothing


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
