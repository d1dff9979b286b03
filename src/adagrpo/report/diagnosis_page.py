"""The page of a diagnosis: what the ranker knows, where, and what the gate would make of it; one offline HTML file.

Made from the content of `diagnose/diagnose.json` alone. Gains that a case's own target selected stand in tables of
their own, beside what a shuffled ranker gets in the same place, and never in the verdict.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adagrpo.metrics import ReportPart, metric_names
from adagrpo.objective import GroupSummary
from adagrpo.report.diagnosis_figures import exposure_figures, weight_figures
from adagrpo.report.page import keep_together, template
from adagrpo.report.tables import MISSING, Table, format_metric, format_p, metric_table
from adagrpo.storage.writing import write_file

ORDERS = ("policy", "ranker", "mix")
GATE_ROWS: dict[str, Callable[[GroupSummary], float | None]] = {
    "admitted": lambda groups: groups.admission,
    "admitted with shuffled rewards": lambda groups: groups.shuffled_admission,
    "rejected: already easy": lambda groups: groups.rejected_easy,
    "rejected: reward not sure enough": lambda groups: groups.rejected_undiscriminated,
    "rejected: degenerate group": lambda groups: groups.rejected_degenerate,
    "invalid rollouts": lambda groups: groups.invalid_share,
    "groups that hold the logged item": lambda groups: groups.contains_target,
    "admitted groups that hold it": lambda groups: groups.admitted_contains_target,
}

QUESTIONS = {
    "adds": "policy and ranker together, minus the policy's order",
    "leads": "the ranker alone, minus the policy's order, cases weighted by exposure",
    "leads_as_logged": "the same, cases not weighted; does not count for the verdict",
}

Row = Mapping[str, Any]


def write_diagnosis(run_directory: Path, result: Row, name: str, serves: Path | None = None) -> Path:
    """Write `diagnose.html` into a run directory; `serves` is how the command line names that."""
    path = run_directory / "diagnose.html"
    page = template("diagnosis.html.j2").render(
        name=name,
        decision=result["verdict"]["decision"],
        sentences=[keep_together(sentence) for sentence in result["verdict"]["sentences"]],
        gate_sentences=result["verdict"]["gate_sentences"],
        gain=gain_sentence(result),
        serve=serve_command(result, serves or run_directory),
        settings=result["settings"],
        tables=diagnosis_tables(result),
        weights=weight_figures(result["weights"]),
        exposure=exposure_figures(result["by_exposure"]),
        counted=result["by_exposure"]["counted"],
    )
    write_file(path, page)
    return path


def gain_sentence(result: Row) -> str | None:
    """What re-ranking means for a thousand users; None where the reward should not be used."""
    if result["verdict"]["decision"] == "do_not_use":
        return None
    own, both = (round(1000 * result["orders"][name]["hr@10"]) for name in ("policy", "mix"))
    return (
        f"Of 1,000 users {own} find their next item in the policy's list of ten, and {both} in the re-ranked one"
        " (validation cases)."
    )


def serve_command(result: Row, run: Path) -> str | None:
    """The command that serves the re-ranked list; None where the reward should not be used."""
    weight = result["reranking"]["weight"]
    if result["verdict"]["decision"] == "do_not_use" or not weight:
        return None
    return f"adagrpo serve --run {shlex.quote(str(run))} --arm sft --reward-weight {weight:g}"


def diagnosis_tables(result: Row) -> dict[str, Table]:
    """The tables of a diagnosis by name; `leak` and `exposure` only where they were measured."""
    tables = {
        "evidence": _evidence(result["verdict"]["evidence"]),
        "orders": _orders(result["orders"]),
        "serving": _serving([result["all"], *result["serving"]], result["verdict"]["all_cases_adjusted_p"]),
        "popularity": _cells("items by popularity", result["popularity"]),
        "difficulty": _cells("difficulty for the policy", result["difficulty"]),
        "gate": _gate(result["gate"]),
        "grid": _grid(result["grid"], result["verdict"]["thresholds_adjusted_p"]),
    }
    if result["leak"] is not None:
        tables["leak"] = _leak(result["leak"])
    if "exposure" in result:
        tables["exposure"] = _cells("items by exposure", result["exposure"])
    return tables


def _evidence(evidence: Row) -> Table:
    """The questions that the verdict is made from."""
    lines = [
        (text, _interval(evidence[name], 4), format_p(evidence[name]["adjusted_p"]), evidence[name]["strength"])
        for name, text in QUESTIONS.items()
    ]
    return Table.of(("over all cases", "change of NDCG@10", "adjusted p", "evidence for a gain"), lines)


def _leak(leak: Row) -> Table:
    """HR@1 among the same drawn items, of the reward and of rankers of training alone."""
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
    """HR@10 in points, and NDCG@10 of the mix, beside what a shuffled ranker gets in the same cell."""
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


def _gate(gate: Row) -> Table:
    groups = [GroupSummary.of_row(gate[kind]) for kind in ("sample", "beam")]
    lines = [(text, *(_rate(read(one)) for one in groups)) for text, read in GATE_ROWS.items()]
    lines.insert(
        2,
        (
            "admitted beyond that, points",
            *(_interval(gate[kind]["excess"], 2, 100) for kind in ("sample", "beam")),
        ),
    )
    for key, text in (("mean_difficulty", "mean difficulty d"), ("mean_q", "mean discriminability q")):
        lines.append((text, *(f"{gate[kind][key]:.3f}" for kind in ("sample", "beam"))))
    return Table.of(("", "sampled groups", "beam groups"), lines)


def _grid(rows: Sequence[Row], p_values: Sequence[float]) -> Table:
    header: tuple[str, ...] = ("tau", "q_min", "admitted", "share", "shuffled", "beyond it, points")
    header += ("pull beyond the policy, %",)
    lines = []
    for row, p in zip(rows, p_values, strict=True):
        line = [f"{row['tau']:.4g}", f"{row['q_min']:g}", f"{row['admitted']:,}"]
        line += [_rate(row["admission"]), _rate(row["shuffled_admission"]), _interval(row["excess"], 2, 100)]
        line += [_interval(row["pull_on_hard"], 2, 100)]
        lines.append((*line, format_p(p)))
    return Table.of((*header, "adjusted p"), lines, left=0)


def _counted(row: Row) -> tuple[str, str, str]:
    return row["cell"], f"{row['cases']:,}", _rate(row["in_beam"])


def _interval(interval: Row, digits: int, factor: float = 1) -> str:
    mean, low, high = (factor * interval[name] for name in ("mean", "low", "high"))
    return f"{mean:+.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _rate(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f} %"
