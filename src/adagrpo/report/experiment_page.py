"""The page of an online experiment: verdict, effects relative to the control, effects by day, and checks.

Before the end of the window, or if the sample ratio fails, it shows no effects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adagrpo.report.charts import Band, ForestRow, IntervalMark, forest_chart, interval_chart
from adagrpo.report.figures import Figure
from adagrpo.report.page import Block, Section, page
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
    late = ", after the start" if result["frozen_after_the_start"] else ""
    facts = [
        ("Users", ", ".join(f"{arm} {count:,}" for arm, count in result["users"].items())),
        ("Plan", f"{result['plan'][:12]}, frozen {result['frozen']}{late}"),
        ("Evaluated at", result["look"]),
        *((f"{arm} stopped", time) for arm, time in result["stopped"].items()),
    ]
    verdict = [Block("arm", result["reasons"][arm], f"{arm}: {word}.") for arm, word in result["verdicts"].items()]
    verdict += [Block("facts", facts), *(Block("p", note) for note in result["notes"])]
    interleaved = result["kind"] == "interleaving"
    sections = (_of_interleaving if interleaved else _of_arms)(result)
    title = f"{result['experiment']}: adagrpo {'interleaving' if interleaved else 'experiment'}"
    heading = f"{result['experiment']}: {'two arms in one list' if interleaved else 'an experiment on users'}"
    return page(title, heading, [Section("verdict", "Verdict", verdict), *sections])


def _of_arms(result: Row) -> list[Section]:
    def forest(rows: Sequence[Row], of: str, title: str, x_label: str, caption: str) -> list[Figure]:
        drawn = [
            ForestRow(f"{row['treatment']}, {row[of]}", {row["treatment"]: IntervalMark(row["relative"], *_ends(row))})
            for row in rows
            if "relative" in row
        ]
        if not drawn:
            return []
        x_label += ", % of the control's number"
        return [Figure(forest_chart(drawn, title=title, x_label=x_label, percent_points=True), caption)]

    effects, guardrails, daily = result["effects"], result["guardrails"], result["daily"]
    shown = [Block("absent", "No effect is shown; the verdict says why.")]
    no_day = "No effect is shown, so none is drawn by day."
    if effects:
        caption = "Right of the line the arm has more than the control. Each interval is of one metric alone."
        drawn = forest(effects, "metric", "Effects on the metrics", "effect", caption)
        shown = [Block("table", effects_table(effects), "Effects"), _charts(drawn, "No effect could be estimated.")]
        no_day = "No day is over yet."
    kept = [Block("absent", "The plan has no guardrail, or the verdict says why none is shown.")]
    if guardrails:
        caption = "The table says by how much each may get worse."
        drawn = forest(guardrails, "guardrail", "Guardrails", "change", caption)
        kept = [Block("table", guardrails_table(guardrails), "Guardrails")]
        kept.append(_charts(drawn, "No guardrail could be estimated."))
    days = list(dict.fromkeys(row["through"] for row in daily))
    arms = list(dict.fromkeys(row["treatment"] for row in daily))
    known = {(row["metric"], row["treatment"], row["through"]): row for row in daily if "relative" in row}
    by_day = []
    for metric in dict.fromkeys(row["metric"] for row in daily):
        found = {arm: [known.get((metric, arm, day)) for day in days] for arm in arms}
        bands = [
            Band(arm, [None if row is None else IntervalMark(row["relative"], *_ends(row)) for row in line])
            for arm, line in found.items()
        ]
        svg = _day_chart(days, bands, f"Effect on {metric} until each day", "share of the control's number", 0.0)
        numbers = daily_table([row for row in daily if row["metric"] == metric])
        by_day.append(Figure(svg, "An effect that fades from day to day may be due to novelty.", numbers))
    ratios = []
    for row in result["sample_ratio"]:
        users = ", ".join(f"{arm} {count:,}" for arm, count in row["counts"].items())
        ratios.append((row["part"], users, format_p(row["p_value"]), "yes" if row["passes"] else "no"))
    counts = Table.of(("answers", "number"), [(text, f"{result['counts'][key]:,}") for key, text in COUNTS.items()])
    ratio_table = Table.of(("part", "users", "p", "passes"), ratios, 2, 1) if ratios else None
    checked = [
        Block("table", ratio_table, "Sample ratios"),
        Block("absent", "" if ratios else "No user was shown anything in the window."),
        Block("table", counts, "Answers"),
    ]
    return [
        Section("effects", "Effects", shown),
        Section("days", "Day by day", [_charts(by_day, no_day)]),
        Section("guardrails", "Guardrails", kept),
        Section("checks", "What was checked first", checked),
    ]


def _of_interleaving(result: Row) -> list[Section]:
    days, figures = result["daily"], []
    if days:
        band = Band("preference", [IntervalMark(row["share"], *row["interval"]) for row in days])
        label = "share of a user's credited clicks"
        svg = _day_chart([row["through"] for row in days], [band], "Preference until each day", label, 0.5)
        figures = [Figure(svg, "Above one half users prefer the treatment.", preference_table(days))]
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
    checked = [Block("table", Table.of(("", "number"), lines), "Lists and users")]
    return [
        Section("days", "Day by day", [_charts(figures, "No preference is shown; the verdict says why.")]),
        Section("checks", "What was checked first", checked),
    ]


def _charts(figures: Sequence[Figure], otherwise: str) -> Block:
    return Block("charts", figures) if figures else Block("absent", otherwise)


def _day_chart(days: Sequence[str], bands: Sequence[Band], title: str, y_label: str, reference: float) -> str:
    step = -(-len(days) // MOST_LABELS) or 1
    labels = [day[5:] if index % step == 0 else "" for index, day in enumerate(days)]
    named = {"title": title, "x_label": "last day that is counted", "y_label": y_label}
    return interval_chart(labels, bands, **named, reference=reference, percent=True)


def preference_table(rows: Sequence[Row]) -> Table:
    """Tabulate the preference up to each day."""
    lines = [
        (row["through"], f"{row['share']:.1%}", " to ".join(f"{end:.1%}" for end in row["interval"])) for row in rows
    ]
    return Table.of(("through", "preference", "interval"), lines, left=1)


def effects_table(rows: Sequence[Row]) -> Table:
    """Tabulate effects by treatment and metric."""
    lines = []
    for row in rows:
        cells = (MISSING,) * 6
        if "relative" in row:
            cells = (
                f"{row['control']:.4g}",
                f"{row['value']:.4g}",
                f"{row['relative']:+.2%}",
                _span(_ends(row)),
                MISSING if row["anytime"] else f"{row['p_holm']:.3g}",  # of one look: among many it decides nothing
                f"{row['detectable']:.2%}",
            )
        lines.append((row["treatment"], row["metric"], *cells, row["says"]))
    head = ("arm", "metric", "control", "arm's", "effect", "interval", "p (Holm)", "detectable", "")
    return Table.of(head, lines, left=2, last=1)


def guardrails_table(rows: Sequence[Row]) -> Table:
    """Tabulate guardrails by treatment."""
    lines = []
    for row in rows:
        cells = (MISSING,) * 4
        if "relative" in row:
            numbers = (f"{row['control']:.4g}", f"{row['value']:.4g}", f"{row['relative']:+.2%}")
            cells = (*numbers, _span(row["interval"]))
        lines.append((row["treatment"], row["guardrail"], *cells, f"{row['margin']:.1%}", row["says"]))
    head = ("arm", "guardrail", "control", "arm's", "change", "interval", "margin", "")
    return Table.of(head, lines, left=2, last=1)


def daily_table(rows: Sequence[Row]) -> Table:
    """Tabulate effects up to each day."""
    lines = [
        (row["through"], row["treatment"], row["metric"], f"{row['relative']:+.2%}", _span(_ends(row)))
        for row in rows
        if "relative" in row
    ]
    return Table.of(("through", "arm", "metric", "effect", "interval"), lines, left=3)


def _ends(row: Row) -> tuple[float, float]:
    ends: tuple[float, float] = row.get("anytime") or row["interval"]  # guardrails have the latter alone
    return ends


def _span(ends: tuple[float, float]) -> str:
    return f"{ends[0]:+.2%} to {ends[1]:+.2%}"
