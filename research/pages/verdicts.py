"""What `diagnose` said of each pair of a world and a reward, against what training on it then did to true utility.

Of the rows of `research.verdict.measure` (outcomes) and `research.verdict.verdicts` (verdicts). Training lowered true
utility where the 95 % interval of an arm less continued NLL is below zero, and raised it where that is above zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from adagrpo.report.tables import MISSING, Alignment, Table

__all__ = ["agreement", "joined", "verdict_summary", "verdict_table"]

Row = Mapping[str, Any]

METRIC = "true_utility@10"
ARMS = ("distill-tuned", "mixture")  # the recommended one first
HALVES = ("development", "held-out", "all")


def joined(outcomes: Sequence[Row], verdicts: Sequence[Row]) -> list[dict[str, Any]]:
    """Each row of outcomes with its row of verdicts.

    Raises:
        ValueError: a pair was not judged, or was judged twice.
    """
    known = {(row["world"], row["reward"]): row for row in verdicts}
    if len(known) < len(verdicts):
        raise ValueError("a pair of a world and a reward was judged twice")
    missing = [row for row in outcomes if (row["world"], row["reward"]) not in known]
    if missing:
        raise ValueError(
            f"{missing[0]['world']}, {missing[0]['reward']}: has no verdict; run research.verdict.verdicts"
        )
    return [{**known[row["world"], row["reward"]], **row} for row in outcomes]


def agreement(decisions: Sequence[str]) -> float:
    """The share of the seeds that say what most of them say.

    >>> agreement(["use", "use", "use", "rerank_only"])
    0.75
    """
    return Counter(decisions).most_common(1)[0][1] / len(decisions)


def verdict_table(rows: Sequence[Row]) -> Table:
    """One row a pair: what most seeds said, how many did and from what; what training did, in words where beyond 0."""
    header: tuple[str, ...] = ("world", "half", "reward", "said", "evidence", "seeds that agree", "with one draw")
    header += ("adds, Δ NDCG@10", "leads, Δ NDCG@10", "leads as logged", *(f"{arm}, Δ true utility" for arm in ARMS))
    cells = []
    for row in rows:
        evidence = [row["evidence"][name]["mean"] for name in ("adds", "leads", "leads_as_logged")]
        line = [row["world"], row["half"], row["reward"], _mostly(row["decisions"]), row["strengths"][0]]
        line += [f"{100 * agreement(row[key]):.0f} %" for key in ("decisions", "one_draw")]
        line += [f"{value:+.4f}" for value in evidence]
        line += [_interval(row["arms"][arm][METRIC]) for arm in ARMS]
        line.append(_interval(row["rerank"][METRIC]))
        cells.append(tuple(line))
    left: list[Alignment] = ["left"] * 5
    right: list[Alignment] = ["right"] * (len(header) - 4)
    return Table((*header, "re-ranking, Δ true utility"), tuple(cells), (*left, *right))


def verdict_summary(rows: Sequence[Row]) -> Table:
    """The targets by half: agreement of the seeds, false and missed use, and losses that were refused."""
    cells = []
    for half in HALVES:
        chosen = [row for row in rows if half in ("all", row["half"])]
        if not chosen:
            continue
        line = [half, str(len(chosen))]
        shares = {key: sum(agreement(row[key]) for row in chosen) / len(chosen) for key in ("decisions", "one_draw")}
        line += [f"{100 * share:.1f} %" for share in shares.values()]
        for arm in ARMS:
            used = [row for row in chosen if _mostly(row["decisions"]) == "use"]
            raised = [row for row in chosen if row["arms"][arm][METRIC][1] > 0]
            missed = [row for row in raised if _mostly(row["decisions"]) != "use"]
            line.append(_of([row for row in used if row["arms"][arm][METRIC][2] < 0], used))
            line.append(_of(missed, raised))
        refused = [row for row in chosen if _mostly(row["decisions"]) != "use"]
        line.append(_of([row for row in refused if any(row["arms"][arm][METRIC][2] < 0 for arm in ARMS)], refused))
        cells.append(tuple(line))
    header: tuple[str, ...] = ("worlds", "pairs", "seeds that agree", "with one draw")
    for arm in ARMS:
        header += (f"{arm}: false use, of those said", f"missed use, of those that {arm} raised")
    right: list[Alignment] = ["right"] * (len(header))
    return Table((*header, "refused, and an arm lowered"), tuple(cells), ("left", *right))


def _mostly(decisions: Sequence[str]) -> str:
    return Counter(decisions).most_common(1)[0][0]


def _of(some: Sequence[Row], whole: Sequence[Row]) -> str:
    return f"{len(some)} of {len(whole)}" if whole else MISSING


def _interval(ends: Sequence[float]) -> str:
    mean, low, high = ends
    sign = "lowered " if high < 0 else "raised " if low > 0 else ""
    return f"{sign}{mean:+.4f} ({low:+.4f} to {high:+.4f})"
