"""The last steps of post-trained arms against continued NLL, as a table and in sentences of one seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adagrpo.evaluation.comparison import reported
from adagrpo.report.tables import MISSING, Table, format_metric, metric_label

HITS, UTILITY = "hr@10", "true_utility@10"
SHOWN = (HITS, "hallucination@10", "mean_reward@10", UTILITY)


def training_table(trained: Mapping[str, Any]) -> Table:
    """Tabulate arms, with differences from continued NLL and the admission by rewards and by shuffled ones."""
    rows = []
    judged = [name for name in (HITS, UTILITY) if any(name in row["against"] for row in trained["rows"])]
    shown = [name for name in SHOWN if any(name in row["test"] for row in trained["rows"])]
    for row in trained["rows"]:
        cells = [row["arm"]]
        for name in shown:
            value = row["test"].get(name)
            cells.append(MISSING if value is None else format_metric(name, value["mean"]))
            if name in judged:
                cells.append(_against(name, row["against"]))
        shares = trained["admission"].get(row["arm"], [None, None])
        rows.append((*cells, *(format_metric("admission", share) for share in shares)))
    header = [label for name in shown for label in (metric_label(name), *(["against nll"] if name in judged else []))]
    return Table.of(("arm", *header, "admission", "shuffled"), rows)


def difference(metric: str, mean: float, ends: Sequence[float]) -> str:
    """Format a difference with its interval.

    >>> difference("hr@10", 0.0046, [-0.002, 0.011])
    '+0.46 [-0.20, +1.10] points'
    """
    factor, unit, digits = (100, " points", 2) if metric == HITS else (1, "", 4)
    middle, low, high = (f"{factor * value:+.{digits}f}" for value in (mean, *ends))
    return f"{middle} [{low}, {high}]{unit}"


def control_sentence(control: str, against: Mapping[str, Mapping[str, float]]) -> str:
    """Say what `adagrpo` has more than a control of its gate, by intervals of metrics (`mean`, `low`, `high`).

    >>> control_sentence("adagrpo-random", {"hr@10": {"mean": 0.0034, "low": -0.005, "high": 0.012}})
    'adagrpo minus adagrpo-random, last step: HR@10 +0.34 [-0.50, +1.20] points; no difference found.'
    """
    shown = {name: against[name] for name in (HITS, UTILITY) if name in against}
    told = [difference(name, one["mean"], (one["low"], one["high"])) for name, one in shown.items()]
    differ = [metric_label(name) for name, one in shown.items() if one["low"] > 0 or one["high"] < 0]
    says = f"they differ in {' and '.join(differ)}" if differ else "no difference found"
    texts = ", ".join(f"{metric_label(name)} {text}" for name, text in zip(shown, told, strict=True))
    return f"adagrpo minus {control}, last step: {texts}; {says}."


def intervals(against: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return `mean`, `low` and `high` of each difference of a comparison."""
    ends = {name: reported(one) for name, one in against.items()}
    return {
        name: {"mean": one["difference"], "low": ends[name][0], "high": ends[name][1]} for name, one in against.items()
    }


def training_sentences(trained: Mapping[str, Any]) -> list[str]:
    """Say what the rows show: what moved against continued NLL, and the gate against a random one of its size."""
    judge = UTILITY if any(UTILITY in row["against"] for row in trained["rows"]) else HITS
    moved: dict[str, list[str]] = {"raised by": [], "lowered by": [], "no difference found for": []}
    for row in trained["rows"]:
        if row["against"] and row["arm"] != "sft":
            low, high = reported(row["against"][judge])
            moved["raised by" if low > 0 else "lowered by" if high < 0 else "no difference found for"].append(
                row["arm"]
            )
    found = "; ".join(f"{verb} {', '.join(arms)}" for verb, arms in moved.items() if arms)
    sentences = [f"{metric_label(judge)} against nll: {found}."] if found else []
    sentences += [control_sentence(pair["other"], intervals(pair["against"])) for pair in trained["pairs"]]
    return [*sentences, "95 % intervals over users, of one seed; another seed can differ by more."] if sentences else []


def _against(metric: str, against: Mapping[str, Any]) -> str:
    return difference(metric, against[metric]["difference"], reported(against[metric])) if against else MISSING
