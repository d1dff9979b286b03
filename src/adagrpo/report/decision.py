"""Output of `adagrpo decide`, for the terminal and reports."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adagrpo.lists.names import RERANK
from adagrpo.report.tables import MISSING, START, Table

WEIGHTED = (
    "Weighted NDCG@10 is of validation cases, each weighted up the more rarely its item was shown; test columns are not"
    " weighted."
)


def decision_table(content: Mapping[str, Any]) -> Table:
    """Tabulate all contenders, the simplest first, with validation NDCG and test metrics."""
    utility = any("true_utility@10" in row["test"] for row in content["contenders"])
    random = any("random" in row for row in content["contenders"])
    own = "weighted NDCG@10" if content["exposure_weighted"] else "NDCG@10"
    header = ["list", own, f"against {START}", "test HR@10", "test NDCG@10", "coverage", "tail", "invalid"]
    rows = [_cells(row, utility, random) for row in content["contenders"]]
    best = max(range(len(rows)), key=lambda row: content["contenders"][row]["validation"]["ndcg@10"])
    names = (*header, *(["true utility"] if utility else []), *(["AUC on random"] if random else []), "ms")
    return Table.of(names, rows, best={(best, 1)})


def _cells(row: Mapping[str, Any], utility: bool, random: bool) -> tuple[str, ...]:
    mean, low, high = row[f"ndcg@10 against {START}"]
    test = row["test"]
    against = MISSING if row["list"] == START else f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
    invalid = f"{100 * test['hallucination@10']:.2f} %" if "hallucination@10" in test else MISSING
    return (
        row["list"],
        f"{row['validation']['ndcg@10']:.4f}",
        against,
        f"{test['hr@10']:.4f}",
        f"{test['ndcg@10']:.4f}",
        f"{100 * test['coverage@10']:.1f} %",
        f"{100 * test['tail_share@10']:.1f} %",
        invalid,
        *([f"{test['true_utility@10']:.4f}"] if utility else []),
        *([f"{row['random']['auc']:.4f}"] if random else []),
        f"{row['milliseconds']:.1f}",
    )


def decision_sentences(content: Mapping[str, Any]) -> list[str]:
    """Return what to serve and why, the effect per thousand users, then any doubts."""
    rows = {row["list"]: row for row in content["contenders"]}
    chosen, control = content["chosen"], content["control"]
    hits = {name: round(1000 * row["test"]["hr@10"]) for name, row in rows.items()}
    others = [name for name in dict.fromkeys((control, "item_knn", "popularity")) if name != chosen]
    return [
        f"Serve {chosen}: {content['why']}. It needs {', '.join(rows[chosen]['needs'])}.",
        *([WEIGHTED] if content["exposure_weighted"] else []),
        f"Of 1,000 users {hits[chosen]} find their next item in a list of ten, test cases;"
        f" with {', '.join(f'{name} {hits[name]}' for name in others)}.",
        *_time(rows[chosen]),
        *_on_random(content, rows[chosen]),
        *_said(content, "warning"),
        *_said(content, "training"),
        *(f"{'Also' if number else 'But'} {doubt}." for number, doubt in enumerate(content["doubts"])),
    ]


def _time(row: Mapping[str, Any]) -> list[str]:
    if "processor_milliseconds" not in row:
        return []
    return [
        f"One list of {row['list']} takes {row['milliseconds']:.1f} ms, {row['processor_milliseconds']:.1f} ms of"
        " processor time over all threads: each history's least of several rounds in which the lists take turns, and"
        " the median of those."
    ]


def _on_random(content: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    if "random" not in row or row["list"] == START:
        return []
    gained = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(100 * value for value in row["random"][f"against {START}"]))
    return [
        f"On items shown at random to {content['random_users']:,} users it gains {gained} points of AUC compared with"
        f" {START}."
    ]


def _said(content: Mapping[str, Any], key: str) -> list[str]:
    sentence = content[key]
    return [] if sentence is None else [f"{sentence[0].upper()}{sentence[1:]}."]


def decision_text(content: Mapping[str, Any]) -> str:
    """Return the decision for the terminal, with the commands to serve and test it."""
    warning = _said(content, "warning")
    lines = [*warning, *(said for said in decision_sentences(content) if said not in warning), "", content["serve"]]
    trial = content["experiment"]
    if trial is not None:
        plan = f"the plan, {trial['plan']}, is frozen when the service starts"
        lines += ["", f"Or try it on users, half of whom keep {content['control']}; {plan}:"]
        lines += ["", trial["serve"]]
    return "\n".join(lines)


def list_advice(result: Mapping[str, Any], decision: Mapping[str, Any] | None, called: Path) -> list[str]:
    """Return the effect of re-ranking per thousand users, and the list that `decide` chose or how to choose one.

    Args:
        decision: the content of decision.json; None if missing or stale.
        called: the run's name on the command line.
    """
    said = []
    if result["verdict"]["decision"] == "use":
        own, both = (round(1000 * result["orders"][name]["hr@10"]) for name in ("policy", "mix"))
        said.append(
            f"Of 1,000 users {own} find their next item in the policy's list of ten, and {both} in the re-ranked one"
            " (validation cases)."
        )
    if decision is None:
        command = f"`adagrpo decide --run {shlex.quote(str(called))}`"
        return [*said, f"{command} compares all lists and prints the command that serves the best one."]
    chosen = decision["chosen"]
    found = {row["list"]: row["validation"]["ndcg@10"] for row in decision["contenders"]}
    compared = f", that of {RERANK} {found[RERANK]:.4f}" if RERANK in found and chosen != RERANK else ""
    said.append(
        f"Serve {chosen}, which `adagrpo decide` chose: its NDCG@10 on validation is {found[chosen]:.4f}{compared}."
    )
    if (added := decision.get("reward_in_fusion")) is not None:
        mean, low, high = added
        said.append(f"In the fused list the reward changes NDCG@10 by {mean:+.4f} ({low:+.4f} to {high:+.4f}).")
    return said
