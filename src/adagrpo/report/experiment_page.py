"""The page of an online experiment: verdict, effects relative to the control, effects by day, and checks.

Before the end of the window, or if the sample ratio fails, it shows no effects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adagrpo.report.figures import Figure
from adagrpo.report.interval_charts import Band, ForestRow, IntervalMark, forest_chart, interval_chart
from adagrpo.report.page import keep_together, template
from adagrpo.report.tables import MISSING, Table, format_p
from adagrpo.storage.writing import write_file

Row = Mapping[str, Any]
MOST_LABELS = 8  # days that are written below a chart
COUNTS = {
    "answers": "answers in the experiment",
    "answers_excluded": "of users whom the plan excludes",
    "answers_held_out": "of users who are held out",
    "answers_outside": "of users whom the ramp had not reached",
    "answers_stopped": "of users whose arm was off",
    "answers_misassigned": "of another arm than the user's",
    "answers_of_other_plan": "of another plan",
    "answers_of_other_key": "of users hashed with another key",
    "answers_before_the_plan": "that name no plan and are older than it",
    "requests_failed": "requests that got no answer",
    "feedback_early": "feedback before its answer, left out",
    "feedback_late": "feedback too long after it, left out",
    "feedback_not_shown": "feedback on items that were not shown, left out",
    "feedback_repeated": "feedback that repeats another, left out",
    "feedback_unknown": "feedback of unknown requests, left out",
}


def write_experiment(path: Path, result: Row) -> Path:
    """Write the page of a result of `adagrpo.pipeline.experiment.experiment`."""
    write_file(path, experiment_page(result))
    return path


def experiment_page(result: Row) -> str:
    """Return the page as HTML that works offline."""
    if result["kind"] == "interleaving":
        return _interleaving_page(result)
    return template("experiment.html.j2").render(
        **_head(result),
        effects=effects_table(result["effects"]),
        effect_figures=_forest(
            result["effects"],
            "metric",
            title="Effects on the metrics",
            x_label="effect, % of the control's number",
            caption="Right of the line the arm has more than the control. Each interval is of one metric alone.",
        ),
        daily=_daily_figures(result["daily"]),
        guardrails=guardrails_table(result["guardrails"]),
        guardrail_figures=_forest(
            result["guardrails"],
            "guardrail",
            title="Guardrails",
            x_label="change, % of the control's number",
            caption="The table says by how much each may get worse.",
        ),
        ratios=_ratios(result["sample_ratio"]),
        counts=_counts(result["counts"]),
    )


def _interleaving_page(result: Row) -> str:
    days = result["daily"]
    figures = []
    if days:
        band = Band("preference", [IntervalMark(row["share"], *row["interval"]) for row in days])
        svg = interval_chart(
            _labels([row["through"] for row in days]), [band], title="Preference until each day",
            x_label="last day that is counted", y_label="share of a user's credited clicks", reference=0.5,
            percent=True,
        )  # fmt: skip
        figures.append(Figure(svg, "Above one half users prefer the treatment.", preference_table(days)))
    counts, first = result["users"], result["first_place"]
    lines = [
        ("users who were shown lists", f"{counts['shown']:,}"),
        ("users who clicked", f"{counts['clicked']:,}"),
        ("interleaved lists", f"{result['answers']:,}"),
        ("of them with the treatment first", f"{first['treatment']:.1%}"),
        ("p-value against one half", format_p(first["p_value"])),
        ("clicks before their list, left out", f"{result['feedback_early']:,}"),
        ("clicks too long after it, left out", f"{result['feedback_late']:,}"),
    ]
    counted = Table.of(("", "number"), lines)
    return template("interleaving.html.j2").render(**_head(result), figures=figures, counts=counted)


def _head(result: Row) -> dict[str, Any]:
    verdicts = [(arm, verdict, keep_together(result["reasons"][arm])) for arm, verdict in result["verdicts"].items()]
    notes = [keep_together(note) for note in result["notes"]]
    return {"name": result["experiment"], "verdicts": verdicts, "facts": _facts(result), "notes": notes}


def preference_table(rows: Sequence[Row]) -> Table:
    """Tabulate the preference up to each day."""
    lines = [
        (row["through"], f"{row['share']:.1%}", " to ".join(f"{end:.1%}" for end in row["interval"])) for row in rows
    ]
    return Table.of(("through", "preference", "interval"), lines, left=1)


def effects_table(rows: Sequence[Row]) -> Table:
    """Tabulate effects by treatment and metric."""
    head = ("arm", "metric", "control", "arm's", "effect", "interval", "p (Holm)", "detectable", "")
    return Table.of(head, [_effect_row(row) for row in rows], left=2, last=1)


def guardrails_table(rows: Sequence[Row]) -> Table:
    """Tabulate guardrails by treatment."""
    head = ("arm", "guardrail", "control", "arm's", "change", "interval", "margin", "")
    return Table.of(head, [_guard_row(row) for row in rows], left=2, last=1)


def daily_table(rows: Sequence[Row]) -> Table:
    """Tabulate effects up to each day; a fading one suggests novelty or a bug."""
    lines = [
        (row["through"], row["treatment"], row["metric"], f"{row['relative']:+.2%}", _span(_ends(row)))
        for row in rows
        if "relative" in row
    ]
    return Table.of(("through", "arm", "metric", "effect", "interval"), lines, left=3)


def _facts(result: Row) -> list[tuple[str, str]]:
    late = ", after the start" if result["frozen_after_the_start"] else ""
    found = [
        ("Users", ", ".join(f"{arm} {count:,}" for arm, count in result["users"].items())),
        ("Plan", f"{result['plan'][:12]}, frozen {result['frozen']}{late}"),
        ("Evaluated at", result["look"]),
    ]
    found += [(f"{arm} stopped", time) for arm, time in result["stopped"].items()]
    return found


def _forest(rows: Sequence[Row], of: str, *, title: str, x_label: str, caption: str) -> list[Figure]:
    drawn = [
        ForestRow(f"{row['treatment']}, {row[of]}", {row["treatment"]: IntervalMark(row["relative"], *_ends(row))})
        for row in rows
        if "relative" in row
    ]
    return [Figure(forest_chart(drawn, title=title, x_label=x_label, percent_points=True), caption)] if drawn else []


def _daily_figures(rows: Sequence[Row]) -> list[Figure]:
    days = list(dict.fromkeys(row["through"] for row in rows))
    arms = list(dict.fromkeys(row["treatment"] for row in rows))
    known = {(row["metric"], row["treatment"], row["through"]): row for row in rows if "relative" in row}
    labels = _labels(days)
    figures = []
    for metric in dict.fromkeys(row["metric"] for row in rows):
        found = [[known.get((metric, arm, day)) for day in days] for arm in arms]
        bands = [
            Band(arm, [None if row is None else IntervalMark(row["relative"], *_ends(row)) for row in line])
            for arm, line in zip(arms, found, strict=True)
        ]
        svg = interval_chart(
            labels, bands, title=f"Effect on {metric} until each day", x_label="last day that is counted",
            y_label="share of the control's number", reference=0.0, percent=True,
        )  # fmt: skip
        numbers = daily_table([row for row in rows if row["metric"] == metric])
        figures.append(Figure(svg, "An effect that fades from day to day may be due to novelty.", numbers))
    return figures


def _labels(days: Sequence[str]) -> list[str]:
    step = -(-len(days) // MOST_LABELS) or 1
    return [day[5:] if place % step == 0 else "" for place, day in enumerate(days)]


def _ratios(rows: Sequence[Row]) -> Table:
    lines = [
        (
            row["part"],
            ", ".join(f"{arm} {count:,}" for arm, count in row["counts"].items()),
            format_p(row["p_value"]),
            "yes" if row["passes"] else "no",
        )
        for row in rows
    ]
    return Table.of(("part", "users", "p", "passes"), lines, 2, 1)


def _counts(counts: Row) -> Table:
    lines = [(text, f"{counts[key]:,}") for key, text in COUNTS.items()]
    return Table.of(("answers", "number"), lines)


def _ends(row: Row) -> tuple[float, float]:
    ends: tuple[float, float] = row.get("anytime") or row["interval"]  # guardrails have the latter alone
    return ends


def _effect_row(row: Row) -> tuple[str, ...]:
    if "relative" not in row:
        return (row["treatment"], row["metric"], *(MISSING,) * 6, row["says"])
    return (
        *(row["treatment"], row["metric"], f"{row['control']:.4g}", f"{row['value']:.4g}", f"{row['relative']:+.2%}"),
        _span(_ends(row)),
        MISSING if row["anytime"] else f"{row['p_holm']:.3g}",  # that of one look decides nothing where there are many
        f"{row['detectable']:.2%}",
        row["says"],
    )


def _guard_row(row: Row) -> tuple[str, ...]:
    if "relative" not in row:
        return (row["treatment"], row["guardrail"], *(MISSING,) * 4, f"{row['margin']:.1%}", row["says"])
    return (
        *(row["treatment"], row["guardrail"], f"{row['control']:.4g}", f"{row['value']:.4g}"),
        *(f"{row['relative']:+.2%}", _span(row["interval"]), f"{row['margin']:.1%}", row["says"]),
    )


def _span(ends: tuple[float, float]) -> str:
    return f"{ends[0]:+.2%} to {ends[1]:+.2%}"
