"""Prints the tables of the study, from the rows of `research.exposure_bias.measure`.

    python -m research.exposure_bias.tables

A figure is a mean over seeds; its interval is the 95 % t-interval over them, where there are two or more. Differences,
of arms from continued NLL and of admitted from rejected groups, are taken within a seed first.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adagrpo.report.page import read_rows
from adagrpo.report.tables import Alignment, Table, to_markdown
from adagrpo.statistics import seed_interval
from research.command import run

BANDS = ("all", "head", "middle", "tail")
BASE = "nll"
REWARDS = ("all users", "cross-fitted")
CONTROLS = ("adagrpo", "discriminability", "random", "shuffled", "inverted", "oracle")
FEWEST = 20  # groups of an outcome; of fewer nothing is said
Row = Mapping[str, Any]
Figure = Callable[[Row], float | None]


def main() -> None:
    """Print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("exposure-bias.jsonl"))
    options = parser.parse_args()
    rows = read_rows(options.results)
    for title, table in tables(rows).items():
        print(f"{title}\n\n{to_markdown(table)}\n")


def correlation(band: str) -> Figure:
    """Rank correlation of the ranker's scores with true utilities, over the items of a popularity band."""
    by = "all" if band == "all" else "item popularity"

    def read(row: Row) -> float | None:
        result = [s for s in row["strata"] if (s["by"], s["stratum"]) == (by, band)]
        return float(result[0]["true_correlation"]["mean"]) if result and result[0].get("true_correlation") else None

    return read


def measured(arm: str, metric: str) -> Figure:
    """A test metric of an arm's final checkpoint."""
    return lambda row: float(row["arms"][arm][metric])


def gained(arm: str, metric: str) -> Figure:
    """The same, less that of continued NLL."""
    return lambda row: float(row["arms"][arm][metric] - row["arms"][BASE][metric])


def admitted(reward: str, gate: str) -> Figure:
    """The share of groups that a gate admits."""
    return lambda row: float(row["gate"][reward]["gates"][gate]["admitted"])


def accuracy(reward: str, gate: str, outcome: str) -> Figure:
    """The reward's pairwise accuracy in the groups that a gate admits or rejects."""

    def read(row: Row) -> float | None:
        result = row["gate"][reward]["gates"][gate]["pairwise_accuracy"].get(outcome)
        return None if result is None or result["users"] < FEWEST else float(result["mean"])

    return read


def selected(reward: str, gate: str) -> Figure:
    """How much more accurate the reward is in admitted than in rejected groups."""

    def read(row: Row) -> float | None:
        inside, outside = (accuracy(reward, gate, outcome)(row) for outcome in ("admitted", "rejected"))
        return None if inside is None or outside is None else inside - outside

    return read


def biases(rows: Sequence[Row]) -> list[float]:
    """The dial's values, ascending."""
    return sorted({row["exposure_bias"] for row in rows})


def at(rows: Sequence[Row], bias: float, figure: Figure) -> list[float]:
    """The figure of each seed at a bias, where there is one."""
    result = (figure(row) for row in sorted(rows, key=lambda row: row["seed"]) if row["exposure_bias"] == bias)
    return [value for value in result if value is not None]


def over_biases(rows: Sequence[Row], figure: Figure) -> list[float]:
    """Each seed's mean over the biases."""
    values: dict[int, list[float]] = {}
    for row in rows:
        result = figure(row)
        if result is not None:
            values.setdefault(row["seed"], []).append(result)
    return [sum(part) / len(part) for _, part in sorted(values.items())]


def tables(rows: Sequence[Row]) -> dict[str, Table]:
    """The tables, by title."""
    dial = biases(rows)
    arms = list(rows[0]["arms"])

    def by_bias(lines: Sequence[tuple[str, Figure]], form: str) -> Table:
        cells = [(name, *(_interval(at(rows, bias, figure), form) for bias in dial)) for name, figure in lines]
        return _table(("", *(f"bias {bias:g}" for bias in dial)), cells)

    result = {"Correlation with true utility": by_bias([(band, correlation(band)) for band in BANDS], "{:.3f}")}
    for metric in ("true_utility@10", "mean_reward@10", "hr@10", "hallucination@10"):
        lines = [(arm, measured(arm, metric)) for arm in ("sft", BASE)]
        lines += [(f"{arm} - {BASE}", gained(arm, metric)) for arm in arms if arm not in ("sft", BASE)]
        result[metric] = by_bias(lines, "{:.4f}")
    lines = [(f"{gate}, {reward}", selected(reward, gate)) for reward in REWARDS for gate in CONTROLS]
    result["Accuracy in admitted less rejected groups"] = by_bias(lines, "{:+.3f}")
    cells = [
        (
            *(reward, gate, _interval(over_biases(rows, admitted(reward, gate)), "{:.1%}")),
            *(_interval(over_biases(rows, accuracy(reward, gate, f)), "{:.1%}") for f in ("admitted", "rejected")),
            _interval(over_biases(rows, selected(reward, gate)), "{:+.3f}"),
        )
        for reward in REWARDS
        for gate in ("all", "difficulty", *CONTROLS)
    ]
    header = ("reward", "gate", "admitted", "right order, admitted", "right order, rejected", "difference")
    result["Every gate, mean over the biases"] = _table(header, cells)
    return result


def _table(header: tuple[str, ...], cells: Sequence[tuple[str, ...]]) -> Table:
    numbers: list[Alignment] = ["right"] * (len(header) - 1)
    return Table(header, tuple(cells), ("left", *numbers))


def _interval(values: Sequence[float], form: str) -> str:
    if not values:
        return "–"
    result = seed_interval(values)
    if len(values) == 1:
        return form.format(result.mean).replace("%", " %")
    mean, low, high = (form.format(value).replace("%", " %") for value in (result.mean, result.low, result.high))
    return f"{mean} ({low} to {high})"


if __name__ == "__main__":
    run(main)
