"""The page of a diagnosis: what the ranker knows, and where; one offline HTML file.

Gains for strata selected by a case's own target never enter the verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adagrpo.metrics import ReportPart, metric_names
from adagrpo.report.decision import list_advice
from adagrpo.report.diagnosis_figures import exposure_figures, weight_figures
from adagrpo.report.page import keep_together, template
from adagrpo.report.tables import MISSING, Table, format_metric, format_p, metric_table
from adagrpo.storage.writing import write_file

ORDERS = ("policy", "ranker", "mix")
QUESTIONS = {
    "adds": "policy and ranker together: NDCG@10 minus the policy's",
    "orders": "other items of the list that the ranker puts below the logged one: share minus one half",
    "leads_as_logged": "the ranker alone: NDCG@10 minus the policy's (decides nothing)",
    "leads": "the same, cases weighted by exposure (decides nothing)",
}

Row = Mapping[str, Any]


def write_diagnosis(run_directory: Path, result: Row, name: str, decision: Row | None, called: Path) -> Path:
    """Write `diagnose.html` into a run directory.

    Args:
        decision: the content of decision.json; None if missing or stale.
        called: the run's name on the command line.
    """
    path = run_directory / "diagnose.html"
    page = template("diagnosis.html.j2").render(
        name=name,
        decision=result["verdict"]["decision"],
        sentences=[keep_together(sentence) for sentence in result["verdict"]["sentences"]],
        advice=[keep_together(sentence) for sentence in list_advice(result, decision, called)],
        serve=None if decision is None else decision["serve"],
        settings=result["settings"],
        tables=diagnosis_tables(result),
        weights=weight_figures(result["weights"]),
        exposure=exposure_figures(result["by_exposure"]),
        counted=result["by_exposure"]["counted"],
    )
    write_file(path, page)
    return path


def diagnosis_tables(result: Row) -> dict[str, Table]:
    """Return the tables of a diagnosis by name; `leak` and `exposure` only if measured."""
    tables = {
        "evidence": _evidence(result["verdict"]["evidence"]),
        "orders": _orders(result["orders"]),
        "serving": _serving([result["all"], *result["serving"]], result["verdict"]["all_cases_adjusted_p"]),
        "popularity": _cells("items by popularity", result["popularity"]),
        "difficulty": _cells("difficulty for the policy", result["difficulty"]),
    }
    if result["leak"] is not None:
        tables["leak"] = _leak(result["leak"])
    if "exposure" in result:
        tables["exposure"] = _cells("items by exposure", result["exposure"])
    return tables


def _evidence(evidence: Row) -> Table:
    lines = [
        (text, _interval(evidence[name], 4), format_p(evidence[name]["adjusted_p"]), evidence[name]["strength"])
        for name, text in QUESTIONS.items()
    ]
    return Table.of(("over all cases", "change", "adjusted p", "evidence for a gain"), lines)


def _leak(leak: Row) -> Table:
    first = leak["hr@1"]
    own = (
        next(iter(leak.get("leaking") or ()), "the reward"),
        *(_rate(first[name]) for name in ("held-out items", "last training items")),
    )
    others = [(name, _rate(value), MISSING) for name, value in leak["references"].items()]
    return Table.of(("HR@1 among drawn items", "held-out items", "last training items"), [own, *others])


def _orders(orders: Row) -> Table:
    columns = [name for name in metric_names(ReportPart.RANKING) if name in orders["policy"]]
    values = [[orders[name][column] for column in columns] for name in ORDERS]
    return metric_table(("beam ordered by",), [(name,) for name in ORDERS], values, columns)


def _serving(rows: Sequence[Row], all_p: float) -> Table:
    header = ("cases", "number", "target in beam", *(f"NDCG@10 {name}" for name in ORDERS))
    lines = [
        (
            *_counted(row),
            *(format_metric("ndcg@10", row["orders"][name]["ndcg@10"]) for name in ORDERS),
            _interval(row["minus_policy"]["mix"]["ndcg@10"], 4),
            format_p(row.get("adjusted_p", all_p)),
        )
        for row in rows
    ]
    return Table.of((*header, "mix minus policy", "adjusted p"), lines)


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
