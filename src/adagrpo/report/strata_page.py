"""The page of `adagrpo diagnose --strata`: gains of the reward's order over the policy's, by stratum.

Source of the three tables: AdaGRPO (Xu et al. 2026, arXiv 2606.08480). Beside each gain is that of shuffled rewards in
the strata that they make themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adagrpo.report.charts import ForestRow, IntervalMark, forest_chart
from adagrpo.report.figures import Figure
from adagrpo.report.page import Block, Section, page
from adagrpo.report.tables import MISSING, Table, format_metric, metric_label
from adagrpo.storage.writing import write_file

Row = Mapping[str, Any]
METRICS = ("hr@10", "ndcg@10")
ALL, FIFTHS, TESTS = "All cases", "Fifths of difficulty", "What the gate's tests say"


def tables_of(content: Row) -> dict[str, list[Row]]:
    """Return the rows of each of the paper's tables by title."""
    found: dict[str, list[Row]] = {ALL: [], FIFTHS: [], TESTS: []}
    for row in content["rows"]:
        name = row["stratum"]
        found[ALL if name == "all" else FIFTHS if ", fifth " in name else TESTS].append(row)
    return found


def strata_tables(content: Row) -> dict[str, Table]:
    """Return the tables of strata.json by title."""
    header = ["stratum", "cases", "HR@10 policy", "HR@10 reward"]
    header += [f"{metric_label(metric)} {who}" for metric in METRICS for who in ("gain", "shuffled")]
    return {
        title: Table.of(
            [*header, "cases, shuffled"],
            [
                (
                    row["stratum"],
                    f"{row['cases']:,}",
                    *(format_metric("hr@10", row[f"{who}_hr@10"]) for who in ("policy", "reward")),
                    *(_gain(row, f"{who}_{metric}") for metric in METRICS for who in ("gain", "shuffled_gain")),
                    f"{row['shuffled_cases']:,}",
                )
                for row in rows
            ],
        )
        for title, rows in tables_of(content).items()
    }


def _gain(row: Row, name: str) -> str:
    value, half = row[name], row[f"{name}_half"]
    if value is None:
        return MISSING
    digits, factor = (2, 100) if name.endswith("hr@10") else (4, 1)
    return f"{factor * value:+.{digits}f}" + ("" if half is None else f" ± {factor * half:.{digits}f}")


def strata_figures(content: Row) -> list[Figure]:
    """Draw the gains of HR@10 and NDCG@10 by stratum, shuffled rewards beside them."""

    def mark(row: Row, name: str) -> IntervalMark | None:
        value, half = row[name], row[f"{name}_half"]
        if value is None:
            return None
        return IntervalMark(value) if half is None else IntervalMark(value, value - half, value + half)

    figures = []
    for metric in METRICS:
        rows = []
        for title, strata in tables_of(content).items():
            for row in strata:
                marks = {"reward": mark(row, f"gain_{metric}"), "shuffled": mark(row, f"shuffled_gain_{metric}")}
                known = {who: one for who, one in marks.items() if one is not None}
                rows.append(ForestRow(row["stratum"], known, title))
        label = metric_label(metric)
        points = metric == "hr@10"
        svg = forest_chart(
            rows,
            title=f"{label}: the reward's order minus the policy's",
            x_label=f"change of {label}" + (", percentage points" if points else ""),
            percent_points=points,
            names={"reward": "reward", "shuffled": "shuffled rewards, in strata of their own"},
        )
        figures.append(Figure(svg))
    return figures


def strata_summary(content: Row) -> list[str]:
    """Return in sentences what was measured, and by which thresholds."""
    said = content["settings"]
    tests = f"tau {said['tau']:g} and rho {said['rho']:g}"
    if said.get("tau_reward") is not None:
        tests += f", tau_reward {said['tau_reward']:g}"
    kept = "without items of the history" if said["exclude_history"] else "items of the history included"
    return [
        f"{said['cases']:,} validation cases, beams of {said['beam_width']} over the catalogue, {kept}; the starting"
        " policy as it is.",
        f"Thresholds of {said['thresholds_from']}: {tests}.",
        "± is half a 95 % interval by the standard error over cases; strata of fewer than"
        f" {said['least_cases']} cases have none. HR@10 in percentage points.",
    ]


def strata_blocks(content: Row) -> list[Block]:
    """Return the section's content: how to read it, the charts and the tables."""
    how = (
        "Hard: the policy ranks the logged item low; known: the reward ranks it high; suppressed: the reward ranks"
        " items of other samples low; admitted: all three. Fifth 1 is the easiest, by the policy's probability of the"
        " logged item, of all cases and of those whose beam holds it. All strata but suppressed read the score whose"
        " place is then measured, so that shuffled rewards gain in them too: what the reward knows is the distance"
        " between both."
    )
    blocks = [Block("quiet", " ".join(strata_summary(content))), Block("quiet", how)]
    blocks.append(Block("charts", strata_figures(content)))
    for title, table in strata_tables(content).items():
        blocks += [Block("h3", title), Block("table", table, title)]
    return blocks


def write_strata(directory: Path, content: Row, name: str) -> Path:
    """Write `strata.html` into a run directory and return its path."""
    title = f"{name}: where the reward orders beams better"
    path = directory / "strata.html"
    write_file(path, page(title, title, [Section("strata", "Gains by stratum", strata_blocks(content), "Strata")]))
    return path
