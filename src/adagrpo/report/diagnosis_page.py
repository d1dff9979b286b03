"""The page of a diagnosis: what the ranker knows, and where; one offline HTML file.

Gains for strata selected by a case's own target never enter the verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adagrpo.metrics import ReportPart, metric_names
from adagrpo.report.charts import Band, IntervalMark, interval_chart
from adagrpo.report.decision import list_advice
from adagrpo.report.figures import Figure
from adagrpo.report.page import Block, Section, page
from adagrpo.report.tables import MISSING, Table, format_interval, format_metric, format_p, metric_table
from adagrpo.storage.writing import write_file

ORDERS = ("policy", "ranker", "mix")
BOTH = ("ranker", "policy")
FRACTIONS = {"0.125": "⅛", "0.25": "¼", "0.5": "½"}  # on an axis, where the others have less room
QUESTIONS = {
    "adds": "policy and ranker together: NDCG@10 minus the policy's",
    "orders": "other items of the list that the ranker puts below the logged one: share minus one half",
    "leads_as_logged": "the ranker alone: NDCG@10 minus the policy's (decides nothing)",
    "leads": "the same, cases weighted by exposure (decides nothing)",
}

Row = Mapping[str, Any]


def write_diagnosis(run_directory: Path, result: Row, name: str, decision: Row | None, called: Path) -> Path:
    """Write `diagnose.html` into a run directory."""
    verdict, settings, tables = result["verdict"], result["settings"], diagnosis_tables(result)
    first, *reasons = verdict["sentences"]
    counted, mix_weights = result["by_exposure"]["counted"], settings["mix_weights"]
    how = (
        '"Use": policy and ranker together order the beam better than the policy, over all cases or in segments that'
        f" are known when serving. Level {settings['level']}: half of it for all cases, half for the segments (Holm)."
        " The sign is called wrong where the ranker puts less than half of a list's other items below the logged one,"
        " with p at most .001. Nothing here says whether training helps. A true utility, where one is known, does not"
        f" count. Strong: p at most .001; some: at most {settings['level']}; none: not significant; against: a"
        " significant loss."
    )
    opening = [
        Block("verdict", [first, *list_advice(result, decision, called)], verdict["decision"]),
        Block("pre", None if decision is None else decision["serve"]),
        Block("list", reasons),
        Block(
            "quiet",
            f"{settings['cases']:,} validation cases, beams of {settings['beam_width']}, the starting policy as it is."
            " Brackets and bars are 95 % intervals over the users: from a bootstrap in segments and curves, and from"
            " the standard error in the evidence table.",
        ),
        Block("table", tables["evidence"], "Evidence"),
        Block("details", [Block("quiet", how)], "How the verdict is reached"),
    ]
    if "leak" in tables:
        opening += [
            Block("h3", "Has it seen the held-out items?"),
            Block("table", tables["leak"], "Held-out items and items of training"),
            Block(
                "quiet",
                "How often the logged item comes first among the same drawn items. A reward that has not seen the"
                " held-out items does no better on them than on each user's last training item, and not far better than"
                " every ranker that the run fits on training data alone.",
            ),
        ]
    weight = (
        "The beam sorted by log-probability plus weight times the reward, the reward in units of its spread within a"
        f" list ({settings['reward_spread']:.4g}). At weight 0 it is the policy's order. The curves use every case at"
        " every weight, so their peak is optimistic. The point of the mix is not: each half of the users has the weight"
        " that was best for the other half. In the split shown the two weights are"
        f" {mix_weights[0]:g} and {mix_weights[1]:g}."
    )
    rarely = (
        "Does the reward order items as well where few exposures were? Items are compared within bins of"
        f" {counted}, so that knowing what is popular does not help."
    )
    if counted != "times shown":
        rarely += " These logs do not say what was shown, so training interactions are counted instead."
    rarely += " At one half on the left, the reward orders rarely shown items no better than chance."
    by_target = [
        Block("h3", "Popularity"),
        Block("table", tables["popularity"], "By popularity"),
        Block("h3", "Exposure" if "exposure" in tables else ""),
        Block("table", tables.get("exposure"), "By exposure"),
        Block("h3", "Difficulty for the policy"),
        Block("table", tables["difficulty"], "By difficulty"),
        Block(
            "quiet",
            "These segments are made of the policy's own misses: in the hardest third any other order, even a shuffled"
            " one, can only gain. What the ranker knows is its distance from the shuffled ranker.",
        ),
    ]
    segments = [
        Block("table", tables["serving"], "Segments known when serving"),
        Block("quiet", "These segments count for the verdict. None of them depends on the logged item."),
    ]
    three = [Block("quiet", "Mix: policy and ranker together."), Block("table", tables["orders"], "Three orders")]
    by_weight = [Block("quiet", weight), Block("charts", weight_figures(result["weights"]))]
    bins = Block("charts", exposure_figures(result["by_exposure"]))
    folded = [Block("details", by_target, "Segments by the logged item")]
    sections = [
        Section("verdict", verdict["decision"].replace("_", " ").capitalize(), opening, "Verdict"),
        Section("weight", "How much weight the reward should have", by_weight, "At which weight"),
        Section("orders", "One beam, three orders", three, "Three orders"),
        Section("exposure", "Rarely shown items", [Block("quiet", rarely), bins], "Rarely shown items"),
        Section("segments", "Segments: where it helps, by what is known when serving", segments, "Segments"),
        Section("researchers", "For researchers", folded, "For researchers"),
    ]
    title = f"{name}: does this reward help?"
    path = run_directory / "diagnose.html"
    write_file(path, page(title, title, sections))
    return path


def diagnosis_tables(result: Row) -> dict[str, Table]:
    """Return the tables of a diagnosis by name; `leak` and `exposure` only if measured."""
    found, orders, leak = result["verdict"]["evidence"], result["orders"], result["leak"]
    evidence = [
        (text, _interval(found[name], 4), format_p(found[name]["adjusted_p"]), found[name]["strength"])
        for name, text in QUESTIONS.items()
    ]
    columns = [name for name in metric_names(ReportPart.RANKING) if name in orders["policy"]]
    values = [[orders[name][column] for column in columns] for name in ORDERS]
    all_p = result["verdict"]["all_cases_adjusted_p"]
    serving = [
        (
            *_counted(row),
            *(format_metric("ndcg@10", row["orders"][name]["ndcg@10"]) for name in ORDERS),
            _interval(row["minus_policy"]["mix"]["ndcg@10"], 4),
            format_p(row.get("adjusted_p", all_p)),
        )
        for row in (result["all"], *result["serving"])
    ]
    cases = ("cases", "number", "target in beam", *(f"NDCG@10 {name}" for name in ORDERS))
    tables = {
        "evidence": Table.of(("over all cases", "change", "adjusted p", "evidence for a gain"), evidence),
        "orders": metric_table(("beam ordered by",), [(name,) for name in ORDERS], values, columns),
        "serving": Table.of((*cases, "mix minus policy", "adjusted p"), serving),
        "popularity": _cells("items by popularity", result["popularity"]),
        "difficulty": _cells("difficulty for the policy", result["difficulty"]),
    }
    if leak is not None:
        first, name = leak["hr@1"], next(iter(leak.get("leaking") or ()), "the reward")
        rates = [(name, _rate(first["held-out items"]), _rate(first["last training items"]))]
        rates += [(name, _rate(value), MISSING) for name, value in leak["references"].items()]
        tables["leak"] = Table.of(("HR@1 among drawn items", "held-out items", "last training items"), rates)
    if "exposure" in result:
        tables["exposure"] = _cells("items by exposure", result["exposure"])
    return tables


def _cells(heading: str, rows: Sequence[Row]) -> Table:
    header = (heading, "number", "target in beam", *(f"HR@10 {name}" for name in ORDERS), "shuffled ranker")
    lines = [
        (
            *_counted(row),
            *(format_metric("hr@10", row["orders"][name]["hr@10"]) for name in (*ORDERS, "shuffled ranker")),
            *(_interval(row["minus_policy"][name]["hr@10"], 2, 100) for name in ("ranker", "mix")),
        )
        for row in rows
    ]
    return Table.of((*header, "ranker minus policy, points", "mix minus policy, points"), lines)


def _counted(row: Row) -> tuple[str, str, str]:
    return row["cell"], f"{row['cases']:,}", _rate(row["in_beam"])


def _interval(interval: Row, digits: int, factor: float = 1) -> str:
    mean, low, high = (factor * interval[name] for name in ("mean", "low", "high"))
    return f"{mean:+.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _rate(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f} %"


def weight_figures(content: Row) -> list[Figure]:
    """Draw the change of NDCG@10 and HR@10 over the weights of re-ranking."""

    def text(weight: float | None) -> str:
        return "∞" if weight is None else f"{weight:.3g}"

    names = [text(weight) for weight in content["weights"]]
    chosen = [text(weight) for weight in dict.fromkeys(content["chosen"])]
    figures = []
    for metric, factor, form, label in (("ndcg@10", 1, "+.4f", "NDCG@10"), ("hr@10", 100, "+.1f", "HR@10, points")):
        ranker, shuffled = ([row[metric] for row in content[who]] for who in ("ranker", "shuffled"))
        mix = content["mix"][metric]
        marks = [[IntervalMark.of(one).times(factor) for one in of] for of in (ranker, shuffled)]
        svg = interval_chart(
            [FRACTIONS.get(name, name) for name in names],
            [
                Band("ranker", marks[0]),
                Band("shuffled ranker", marks[1]),
                Band(
                    "mix, chosen weights",
                    [IntervalMark.of(mix).times(factor) if name in chosen else None for name in names],
                    joined=False,
                ),
            ],
            title=f"Change of {label.partition(',')[0]} by the weight of the reward",
            x_label="weight of the reward (∞: by the reward alone)",
            y_label=f"{label}, minus the policy's order",
            reference=0.0,
        )
        rows = [
            (name, *(format_interval(one, form, factor) for one in both))
            for name, *both in zip(names, ranker, shuffled, strict=True)
        ]
        rows.append((f"mix ({' and '.join(chosen)})", format_interval(mix, form, factor), MISSING))
        figures.append(Figure(svg, numbers=Table.of(("weight", f"ranker, {label}", "shuffled ranker"), rows)))
    return figures


def exposure_figures(content: Row) -> list[Figure]:
    """Draw how well ranker and policy order items with similar exposure."""
    bins, counted = content["bins"], content["counted"]

    def share(interval: Row | None) -> str:
        if interval is None:
            return MISSING
        mean, low, high = (100 * interval[name] for name in ("mean", "low", "high"))
        return f"{mean:.1f} % ({low:.1f} to {high:.1f})"

    def figure(values: Sequence[Row], title: str, caption: str) -> Figure:
        svg = interval_chart(
            [row["bin"] for row in bins],
            [Band(who, [None if row[who] is None else IntervalMark.of(row[who]) for row in values]) for who in BOTH],
            title=title,
            x_label=f"items by {counted}",
            y_label="share in order",
            reference=0.5,
            percent=True,
        )
        rows = [
            (row["bin"], f"{row['items']:,}", f"{value['cases']:,}", *(share(value[who]) for who in BOTH))
            for row, value in zip(bins, values, strict=True)
        ]
        return Figure(svg, caption, Table.of((counted, "items", "cases", *BOTH), rows))

    caption = "One half is chance. Each list's logged item against the other items of the same bin in it."
    figures = [figure(bins, "The logged item above others shown as often", caption)]
    if all("truth" in row for row in bins):
        caption = "Pairs of items of the same bin in a list, without the logged one. Only a simulated world knows this."
        figures.append(figure([row["truth"] for row in bins], "Pairs in the order of the true utility", caption))
    return figures
