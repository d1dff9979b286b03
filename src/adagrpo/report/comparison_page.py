"""The page of a comparison, from `comparison.json`: findings, tables, and the hypotheses fixed in advance.

Rates are fractions there and per cent here; differences are percentage points.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adagrpo.config.training import MATCHED
from adagrpo.errors import UserError
from adagrpo.evaluation.comparison import GATE_CONTROLS, GATED, reported
from adagrpo.metrics import ReportPart, is_rate, lookup, metric_names
from adagrpo.report.charts import ForestRow, IntervalMark, forest_chart
from adagrpo.report.figures import Figure, frontier_figure, utility_figure
from adagrpo.report.page import Block, Section, page
from adagrpo.report.tables import (
    MISSING,
    START,
    Table,
    format_metric,
    format_number,
    format_p,
    metric_label,
    metric_table,
    to_markdown,
)
from adagrpo.report.training import control_sentence, intervals
from adagrpo.storage.hashes import without_hash
from adagrpo.storage.writing import write_file

KINDS = {"both": "users and seeds", "users": "users", "seeds": "seeds"}


def comparison_tables(content: Mapping[str, Any]) -> list[tuple[str, Table]]:
    """Return all tables that have rows, with their titles."""
    rows, metric = content["rows"], content["plan"]["metric"]
    points = [(row["arm"], row["checkpoint"]) for row in rows]
    columns = [name for name in metric_names(ReportPart.COMPARISON) if any(name in row["test"] for row in rows)]
    values = [[row["test"][name]["mean"] if name in row["test"] else None for name in columns] for row in rows]
    by_seed = [
        (*point, *(format_difference(metric, one) for one in row["against"][metric]["by_seed"]))
        for point, row in zip(points, rows, strict=True)
        if row["against"]
    ]
    seeds = ("arm", "checkpoint", *(f"seed {seed}" for seed in content["seeds"]))
    margins, over = content["plan"]["margins"], KINDS[interval_kinds(content)[0]]
    margin_header, margin_rows = ["arm", "checkpoint"], []
    for name, size in margins.items():
        against = f"{metric_label(name)} vs {content['plan']['baseline']}"
        margin_header += [against, f"over {over}", f"within {format_size(name, size)}"]
    for row in rows:
        cells = [row["arm"], row["checkpoint"]]
        for name in margins if row["margins"] else ():
            against = row["against"][name]
            cells += [format_difference(name, against["difference"]), format_ends(name, reported(against))]
            cells += ["yes" if row["margins"][name]["kept"] else "not shown"]
        margin_rows += [tuple(cells)] if row["margins"] else []
    true, kinds = "true_utility@10", interval_kinds(content)
    true_header = ("arm", "checkpoint", metric_label(true), f"vs {content['plan']['baseline']}", *_over(content))
    true_rows = [
        (*point, format_metric(true, row["test"][true]["mean"]), *_difference(true, row["against"][true], kinds))
        for point, row in zip(points, rows, strict=True)
        if true in row["against"]
    ]
    named = [
        ("Against the baseline", comparison_table(content)),
        ("Against the baseline in true utility@10", Table.of(true_header, true_rows, 2)),
        ("Arms against each other", pairs_table(content)),
        ("Margins", Table.of(margin_header, margin_rows, 2)),
        ("Head, tail and breadth (means over seeds)", metric_table(("arm", "checkpoint"), points, values, columns)),
        (f"Difference in {metric_label(metric)} by seed", Table.of(seeds, by_seed, 2)),
        ("What each arm was", _arms(content)),
    ]
    return [(title, table) for title, table in named if table.rows]


def comparison_table(content: Mapping[str, Any]) -> Table:
    """Tabulate arms and checkpoints, with intervals over seeds and differences from the baseline."""
    metric, kinds = content["plan"]["metric"], interval_kinds(content)
    first, *others = _over(content)
    against = f"vs {content['plan']['baseline']}{' (points)' * is_rate(metric)}"
    header = ["arm", "checkpoint", "verdict", metric_label(metric), "± seeds", against, first, "p, Holm", *others]
    rows = []
    for row in content["rows"]:
        test = row["test"][metric]
        half = MISSING if test["interval"] is None else _scaled(metric, test["interval"][1] - test["mean"]).lstrip("+")
        difference, end, *ends = _difference(metric, row["against"].get(metric), kinds)
        p = MISSING if row["p_holm"] is None else format_p(row["p_holm"])
        names = (row["arm"], row["checkpoint"], row["verdict"])
        rows.append((*names, format_metric(metric, test["mean"]), half, difference, end, p, *ends))
    return Table.of(header, rows, 3)


def pairs_table(content: Mapping[str, Any]) -> Table:
    """Tabulate the planned pairs: the first arm less the second, with intervals."""
    metric, kinds = content["plan"]["metric"], interval_kinds(content)
    first, *others = _over(content)
    header = ["arms", "checkpoint", f"{metric_label(metric)}{' (points)' * is_rate(metric)}", first, "p, Holm", *others]
    rows = []
    for row in content.get("pairs", ()):
        difference, end, *ends = _difference(metric, row["against"][metric], kinds)
        names = (f"{row['arm']} minus {row['other']}", row["checkpoint"])
        rows.append((*names, difference, end, format_p(row["p_holm"]), *ends))
    return Table.of(header, rows, 2)


def interval_kinds(content: Mapping[str, Any]) -> list[str]:
    """Return the kinds of interval of the differences, the preferred one first."""
    both = any("both" in against for row in content["rows"] for against in row["against"].values())
    return ["both", "users", "seeds"] if both else ["users", "seeds"]


def _over(content: Mapping[str, Any]) -> list[str]:
    return [f"{100 * content['plan']['level']:g} % over {KINDS[kind]}" for kind in interval_kinds(content)]


def _difference(metric: str, against: Mapping[str, Any] | None, kinds: Sequence[str]) -> list[str]:
    if against is None:
        return [MISSING] * (1 + len(kinds))
    return [
        format_difference(metric, against["difference"]),
        *(format_ends(metric, against.get(kind)) for kind in kinds),
    ]


def _arms(content: Mapping[str, Any]) -> Table:
    def each(values: Sequence[float | None]) -> str:
        texts = [MISSING if value is None else format_number(value) for value in values]
        return ", ".join(dict.fromkeys(texts)) or MISSING

    rows, lost = [], {arm: lost_under(content, arm) for arm in content["arms"]}
    for arm, facts in content["arms"].items():
        admission = dict.fromkeys(format_metric("admission", value) for value in facts["admission"])
        numbers = (each(facts.get("lambda", ())), each(facts.get("pressure", ())), ", ".join(admission))
        rows.append((arm, *numbers, each(facts["weight"]), *([lost[arm] or MISSING] if any(lost.values()) else [])))
    header = ("arm", "lambda", "pressure", "admission", "reward's weight")
    if any(lost.values()):
        return Table.of((*header, "policy lost"), rows, 1, 1)
    return Table.of(header, rows)


def lost_under(content: Mapping[str, Any], arm: str) -> str:
    """List the seeds and steps at which an arm's policy collapsed."""
    found = zip(content["seeds"], content["arms"][arm].get("lost", ()), strict=False)
    return ", ".join(f"seed {seed} (step {lost['step']})" for seed, lost in found if lost)


def _scaled(metric: str, value: float) -> str:
    return f"{100 * value:+.2f}" if is_rate(metric) else f"{value:+.4f}"


def format_difference(metric: str, value: float) -> str:
    """Format a signed difference; rates in percentage points."""
    text = _scaled(metric, value)
    return text.replace("-", "\N{MINUS SIGN}") if float(text) else text.lstrip("+-")


def format_ends(metric: str, ends: Sequence[float] | None) -> str:
    """Format both ends of the interval of a difference."""
    return MISSING if ends is None else f"{format_difference(metric, ends[0])} … {format_difference(metric, ends[1])}"


def format_size(metric: str, value: float) -> str:
    """Format an unsigned margin."""
    return counted(f"{100 * value:g}", "point") if is_rate(metric) else f"{value:g}"


def counted(number: int | str, noun: str) -> str:
    """Format a count with its noun: "1 seed", "2 seeds"."""
    return f"{number} {noun}" + ("" if str(number) == "1" else "s")


EARLIER = {  # verdicts by the names that they had in files of earlier versions
    "better": "significantly better",
    "better, margin not kept": "significantly better, margin not kept",
    "worse": "significantly worse",
    "not settled over seeds": "significant over users only",
    "not settled after correction": "not significant after correction",
    "no difference shown": "not distinguishable",
    "outside the family": "not tested",
}
CONTROLS = {*GATE_CONTROLS, *MATCHED}


def read_comparison(path: Path) -> dict[str, Any]:
    """Read `comparison.json`, upgrading old verdicts; UserError if missing, malformed or modified since its hash."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and "sha256" in content:
            content = without_hash(content)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON that this program wrote ({error})") from error
    if not isinstance(content, dict) or {"plan", "rows"} - content.keys():
        raise UserError(f"{path}: not the comparison.json of a comparison")
    for row in content["rows"]:
        row["verdict"] = EARLIER.get(row["verdict"], row["verdict"])
    return content | ({"finding": finding(content)} if "finding" in content else {})


def write_comparison(directory: Path, content: Mapping[str, Any]) -> Path:
    """Write `comparison.md` and `comparison.html`; return the path of the page."""
    path = directory / "comparison.html"
    write_file(directory / "comparison.md", comparison_markdown(content))
    write_file(path, comparison_page(content))
    return path


def write_comparison_figures(content: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the charts of a comparison as SVG files."""
    charts = {folder / f"{name}.svg": figure.svg for name, figure in comparison_figures(content).items()}
    for path, svg in charts.items():
        write_file(path, svg)
    return list(charts)


def finding(content: Mapping[str, Any]) -> list[str]:
    """Summarize the comparison in a few sentences."""
    plan, rows = content["plan"], [row for row in content["rows"] if row["p_holm"] is not None]
    metric, label, seeds = plan["metric"], metric_label(plan["metric"]), content["seeds"]
    by_verdict = {name: [row for row in rows if row["verdict"] == name] for name in {row["verdict"] for row in rows}}
    under = f"{plan['baseline']} on {label} ({counted(len(seeds), 'seed')}, {counted(len(rows), 'test')})"
    sign = -1 if lookup(metric).better == "lower" else 1
    most = max(rows, key=lambda row: sign * row["against"][metric]["difference"], default=None)
    largest = ""
    if most is not None and sign * (gain := most["against"][metric]["difference"]) > 0:
        points = f"{format_difference(metric, gain)}{' points' * is_rate(metric)}"
        largest = f"; the largest gain is {points}, {most['arm']} ({most['checkpoint']})"
    sentences = [f"No arm is significantly better than {under}, after Holm's correction{largest}."]
    if better := by_verdict.get("significantly better"):
        sentences = [f"Significantly better than {under}, within the margins: {_named(better, metric)}."]
    for row in by_verdict.get("significantly better, margin not kept", []):
        broken = [metric_label(name) for name, margin in row["margins"].items() if not margin["kept"]]
        sentences.append(
            f"Significantly better, but beyond the margin on {' and '.join(broken)}: {_named([row], metric)}."
        )
    for verdict, opening in (
        ("significantly worse", f"Significantly worse than {plan['baseline']}"),
        ("significant over users only", "Significant over users, but not over users and seeds"),
        ("not significant after correction", "Not significant after Holm's correction, only before"),
    ):
        if found := by_verdict.get(verdict):
            sentences.append(f"{opening}: {_named(found, metric)}.")
    if unknown := by_verdict.get("not distinguishable"):
        names = ", ".join(f"{row['arm']} ({row['checkpoint']})" for row in unknown)
        sentences.append(f"Not distinguishable from {plan['baseline']}, which does not show equality: {names}.")
    if unused := [arm for arm, facts in content.get("arms", {}).items() if set(facts.get("weight", [])) == {0}]:
        sentences.append(f"Validation gave the reward no weight under any seed: {', '.join(unused)}.")
    tested = [row for row in content.get("pairs", ()) if row["arm"] == GATED and row["other"] in CONTROLS]
    last = [row for row in tested if row["checkpoint"] == "final"]
    sentences += [control_sentence(row["other"], intervals(row["against"])) for row in last]
    arms = content["arms"]
    untested = sorted(CONTROLS.intersection(arms)) if GATED in arms and not tested else []
    if untested:
        sentences.append(
            f"The gate is not compared with {', '.join(untested)}: `compare.pairs: [[{GATED}, {untested[0]}]]` in the"
            " recipe of a new comparison does."
        )
    picked = _picked(content["rows"], metric)
    sentences.append(
        f"Validation would choose {picked['arm']} ({format_metric(metric, picked['validation'][metric])} there);"
        f" on test it has {_text(picked, metric)}."
    )
    for arm in content.get("arms", {}):
        if under := lost_under(content, arm):
            sentences.append(f"{arm} lost its policy under {under}.")
    if len(seeds) == 1:
        sentences.append(
            "All of this is one seed: the intervals are over users alone and say nothing about another run of the"
            " training."
        )
    return sentences


def comparison_markdown(content: Mapping[str, Any]) -> str:
    """Return the finding and the tables as Markdown."""
    parts = [f"# {content['name']}", " ".join(content["finding"])]
    parts += [f"## {title}\n\n{to_markdown(table)}" for title, table in comparison_tables(content)]
    return "\n\n".join([*parts, _family(content)]) + "\n"


def comparison_page(content: Mapping[str, Any]) -> str:
    """Return the comparison as one HTML page that works offline."""
    plan, metric, seeds = content["plan"], content["plan"]["metric"], len(content["seeds"])
    how = ["Test cases. Over users: paired bootstrap, a user being resampled with all seeds."]
    if seeds > 1:
        how += [f"Over seeds: interval by Student's t from {seeds} differences."]
    if interval_kinds(content)[0] == "both":
        how += ["Over users and seeds: the interval to read. A claim rests on it, by p after Holm's correction."]
        how += ["Arms are corrected among themselves, and pairs of arms apart from them."]
        if seeds <= 5:  # `python -m benchmarks.coverage --tails`
            how += [
                "With so few seeds small p-values are too small: among 25 tests without an effect one is significant in"
                " up to 12 % of comparisons with three seeds, and 8 % with five."
            ]
    elif seeds > 1:
        how += ["A claim needs both: p after Holm's correction, and an interval over seeds that excludes zero."]
    else:
        how += ["A claim rests on p after Holm's correction, which is of this one seed."]
    how += ["The best checkpoint was chosen on validation; the weight of re-ranking was too."]
    differences = []
    for over in ("both",) if "both" in interval_kinds(content) else ("users", "seeds"):
        rows = [
            ForestRow(
                f"{row['arm']}, {row['checkpoint']}",
                {row["arm"]: IntervalMark(row["against"][metric]["difference"], *row["against"][metric][over])},
            )
            for row in content["rows"]
            if row["against"].get(metric) and row["against"][metric].get(over)
        ]
        if rows:
            svg = forest_chart(
                rows,
                title=f"{metric_label(metric)} minus that of {plan['baseline']}, intervals over {KINDS[over]}",
                x_label=f"difference{' in points' if is_rate(metric) else ''}, {100 * plan['level']:g} % interval",
                percent_points=is_rate(metric),
            )
            differences.append(Figure(svg))
    (first, table), *others = comparison_tables(content)
    blocks = [Block("table", table, first), Block("quiet", " ".join(how)), Block("charts", differences)]
    drawn = Block("charts", list(comparison_figures(content).values()))
    configuration = Block("quiet", f"Configuration {content['config_hash']}")
    sections = [
        Section("decision", "Decision", [Block("verdict", _decision(content))]),
        Section("finding", "Finding", [Block("p", sentence) for sentence in content["finding"]]),
        Section("baseline", first, blocks),
        Section("validity", "Retrieval against validity", [drawn]),
        *(
            Section(f"table-{number}", title, [Block("table", table, title)])
            for number, (title, table) in enumerate(others, start=2)
        ),
        Section("plan", "What was fixed beforehand", [Block("p", _family(content)), configuration]),
    ]
    return page(f"{content['name']}: adagrpo comparison", f"{content['name']}: arms compared", sections)


def comparison_figures(content: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw all arms: `frontier` (HR@10 against hallucination) and, if simulated, `utility`."""
    stages: dict[str, dict[str, Any]] = {}
    for row in content["rows"]:
        test = {"test": {name: value["mean"] for name, value in row["test"].items()}}
        stages.setdefault(row["arm"], {}).update(test if row["arm"] == START else {row["checkpoint"]: test})
    drawn = {"frontier": frontier_figure({"stages": stages}), "utility": utility_figure({"stages": stages})}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _family(content: Mapping[str, Any]) -> str:
    plan = content["plan"]
    margins = [f"{metric_label(n)} worse by at most {format_size(n, size)}" for n, size in plan["margins"].items()]
    arms = f"arm {plan['family'][0]} is" if len(plan["family"]) == 1 else f"arms {', '.join(plan['family'])} are each"
    return (
        f"Fixed before the runs: the {arms} compared with {plan['baseline']} on"
        f" {metric_label(plan['metric'])} over {content['users']:,} users, best checkpoint against best and final"
        f" against final, at {100 * plan['level']:g} % with Holm's correction; margins: {', '.join(margins) or 'none'}."
    )


def _decision(content: Mapping[str, Any]) -> list[str]:
    plan, metric = content["plan"], content["plan"]["metric"]
    row = _picked(content["rows"], metric)
    baseline = next((one for one in content["rows"] if one["arm"] == plan["baseline"]), None)
    sentences = [f"Validation chooses {row['arm']}: serve it, or try it on users beside {plan['baseline']}."]
    if row["arm"] == plan["baseline"] or baseline is None:
        sentences = [f"Keep {row['arm']}: validation chooses nothing else."]
    if baseline is not None and metric.startswith("hr@"):
        own, other = (round(1000 * one["test"][metric]["mean"]) for one in (row, baseline))
        compared = "" if row is baseline else f", with {plan['baseline']} {other}"
        judged = "" if row["p_holm"] is None else f"; verdict: {row['verdict']}"
        length = metric.partition("@")[2]
        sentences.append(
            f"Of 1,000 users {own} find their next item in a list of {length} (test cases){compared}{judged}."
        )
    return sentences


def _picked(rows: Sequence[Mapping[str, Any]], metric: str) -> Mapping[str, Any]:
    choose = min if lookup(metric).better == "lower" else max
    return choose((row for row in rows if row["checkpoint"] == "best"), key=lambda row: row["validation"][metric])


def _named(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    texts, unit = [], " points" if is_rate(metric) else ""
    for row in rows:
        delta = row["against"][metric]
        kinds = ["both"] if "both" in delta else ["users", "seeds"]
        ends = ", ".join(f"{KINDS[kind]} {format_ends(metric, delta[kind])}" for kind in kinds)
        texts.append(
            f"{row['arm']} ({row['checkpoint']}: {format_difference(metric, delta['difference'])}{unit},"
            f" {ends}, p {format_p(row['p_holm'])})"
        )
    return "; ".join(texts)


def _text(row: Mapping[str, Any], metric: str) -> str:
    return format_metric(metric, row["test"][metric]["mean"])
