"""The studies of exposure bias and propensities: what is not run again, and what is printed of the rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from adagrpo.report import read_rows, to_markdown
from adagrpo.report.canvas import standalone
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


def test_every_curve_is_drawn() -> None:
    drawn = exposure_tables.charts([row(bias, seed) for bias in (0.0, 1.0) for seed in (0, 1)])
    assert set(drawn) == {"ranker", "utility", "utility-gain", "reward-gain", "gates-all-users", "gates-cross-fitted"}
    for name, svg in drawn.items():
        assert svg.startswith("<svg") and "exposure bias" in svg and "No values" not in svg, name
    assert "mixture" in drawn["utility-gain"] and "oracle" not in drawn["gates-all-users"]


def test_the_curves_and_tables_of_the_project_are_those_of_its_rows() -> None:
    study = Path(exposure_tables.__file__).parent
    rows = read_rows(study / "exposure-bias.jsonl")
    page = (study / "README.md").read_text(encoding="utf-8")
    assert all(to_markdown(table) in page for table in exposure_tables.tables(rows).values())
    drawn = exposure_tables.charts(rows)
    files = {path.stem: path.read_text(encoding="utf-8") for path in (study / "figures" / "exposure-bias").iterdir()}
    assert files == {name: standalone(svg) for name, svg in drawn.items()}


def test_weightings_are_compared_seed_by_seed() -> None:
    values = {"ignore": (0.5, 0.7), "ips": (0.6, 0.8), "snips": (0.5, 0.7)}
    rows = [
        {"world": "coat", "seed": seed, "propensity": way, "metrics": {"random": actual[seed]}}
        for way, actual in values.items()
        for seed in (0, 1)
    ]
    rows.append({"world": "coat", "seed": 2, "propensity": "ignore", "metrics": {"random": 0.1}})  # not whole yet
    assert propensity.table(rows).rows == (
        ("coat", "random", "2", "0.6000", "+0.1000 (+0.1000 to +0.1000)", "+0.0000 (+0.0000 to +0.0000)"),
    )


def test_the_weightings_of_the_project_are_those_of_its_rows() -> None:
    study = Path(propensity.__file__).parent
    page = (study / "README.md").read_text(encoding="utf-8")
    measured = propensity.table(read_rows(study / "propensity.jsonl")).rows
    assert len(measured) == 12 and all(f"| {' | '.join(cells[3:])} |\n" in page for cells in measured)


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
