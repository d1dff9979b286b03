"""Output of `adagrpo decide` and of the demo, for the terminal and reports."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adagrpo.lists.names import RERANK
from adagrpo.lists.table import LISTED
from adagrpo.report.tables import MISSING, START, Table, format_metric, metric_label

WEIGHTED = (
    "Weighted NDCG@10 is of validation cases, each weighted up the more rarely its item was shown; test columns are not"
    " weighted."
)
HIT, RANK, UTILITY = "hr@10", "ndcg@10", "true_utility@10"
SHOWN = (HIT, RANK, UTILITY)
FREE = (*LISTED, "sft", "nll", "fuse-without-reward")  # lists without a reward
RANKER = "The sequential ranker is fitted on shown items alone here, on purpose: it is the second reward, a wrong one."


def decision_table(content: Mapping[str, Any]) -> Table:
    """Tabulate the compared lists, the simplest first, with validation NDCG and test metrics."""
    compared = content["contenders"]
    utility = any("true_utility@10" in row["test"] for row in compared)
    judges = {"random": "AUC on random", "shown_later": "AUC of shown"}
    judged = [name for name in judges if any(name in row for row in compared)]
    clicked = any("clicks_of_list" in row for row in compared)
    baskets = any("recall@10" in row["test"] for row in compared)
    rows = []

    def on_test(test: Mapping[str, float]) -> list[str]:
        return [
            f"{test['hr@10']:.4f}",
            f"{test['ndcg@10']:.4f}",
            *([f"{test['recall@10']:.4f}"] if baskets else []),
            f"{100 * test['coverage@10']:.1f} %",
            f"{100 * test['tail_share@10']:.1f} %",
            f"{100 * test['hallucination@10']:.2f} %" if "hallucination@10" in test else MISSING,
            *([f"{test['true_utility@10']:.4f}"] if utility else []),
        ]

    for row in compared:
        mean, low, high = row[f"ndcg@10 against {START}"]
        rows.append(
            (
                row["list"],
                f"{row['validation']['ndcg@10']:.4f}",
                MISSING if row["list"] == START else f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]",
                *on_test(row["test"]),
                *(f"{row[name]['auc']:.4f}" for name in judged),
                *([f"{100 * row['clicks_of_list']:.1f} %"] if clicked else []),
                f"{row['milliseconds']:.1f}",
            )
        )
    if "under_rules" in content:
        unknown = [MISSING] * (len(judged) + clicked + 1)
        names = (f"{content['chosen']} under rules", MISSING, MISSING)
        rows.append((*names, *on_test(content["under_rules"]["test"]), *unknown))
    own = "weighted NDCG@10" if content["exposure_weighted"] else "NDCG@10"
    header = ["list", own, f"against {START}", "test HR@10", "test NDCG@10", *(["test recall@10"] if baskets else [])]
    header += ["coverage", "tail", "invalid", *(["true utility"] if utility else [])]
    header += [*(judges[name] for name in judged), *(["clicked"] if clicked else []), "ms"]
    best = max(range(len(compared)), key=lambda row: compared[row]["validation"]["ndcg@10"])
    return Table.of(header, rows, best={(best, 1)})


def decision_sentences(content: Mapping[str, Any]) -> list[str]:
    """Return what to serve and why, the effect per thousand users, then any doubts."""
    rows = {row["list"]: row for row in content["contenders"]}
    chosen, row = content["chosen"], rows[content["chosen"]]
    hits = {name: round(1000 * one["test"]["hr@10"]) for name, one in rows.items()}
    others = [name for name in dict.fromkeys((content["control"], "item_knn", "popularity", "own")) if name != chosen]
    others = [name for name in others if name in rows]
    found = "an item of their next basket" if "recall@10" in row["test"] else "their next item"
    sentences = [f"Serve {chosen}: {content['why']}. It needs {', '.join(row['needs'])}."]
    if (gained := content.get("against_control")) is not None and content["control"] != START:
        mean, low, high = gained
        verdict = "beats" if low > 0 else "loses to" if high < 0 else "is not significantly different from"
        sentences.append(
            f"It {verdict} {content['control']}, what users get today: {mean:+.4f} [{low:+.4f}, {high:+.4f}] NDCG@10 on"
            " validation."
        )
    if chosen == "own":
        sentences.append("A query of each user's own items, by how often and how recently, is enough on this log.")
    if content["exposure_weighted"]:
        sentences.append(WEIGHTED)
    if (tuned := content.get("exposure_power")) and tuned["against"]:
        lost = "; ".join(
            "power {} {:+.2f} [{:+.2f}, {:+.2f}]".format(power, *(100 * value for value in found))
            for power, found in tuned["against"].items()
        )
        sentences.append(
            f"Cases weigh one over how often their item was shown, to the power {tuned['power']:g}: its fused list"
            f" orders the clicks on items shown at random best; points of AUC against it: {lost}."
        )
    sentences.append(
        f"Of 1,000 users {hits[chosen]} find {found} in a list of ten, test cases;"
        f" with {', '.join(f'{name} {hits[name]}' for name in others)}."
    )
    if "under_rules" in content:
        change = content["under_rules"]["change"]
        sentences.append(
            f"The rules ({', '.join(content['under_rules']['rules'])}) change {chosen} on test cases by"
            f" {change['ndcg@10']:+.4f} NDCG@10, {100 * change['coverage@10']:+.1f} points of coverage and"
            f" {100 * change['tail_share@10']:+.1f} points of tail share; they have no part in the choice of the list."
        )
    if "processor_milliseconds" in row:
        sentences.append(
            f"One list of {chosen} takes {row['milliseconds']:.1f} ms, {row['processor_milliseconds']:.1f} ms of"
            " processor time over all threads: each history's least of several rounds in which the lists take turns,"
            " and the median of those."
        )
    if "random" in row and chosen != START:
        gained = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(100 * value for value in row["random"][f"against {START}"]))
        sentences.append(
            f"On items shown at random to {content['random_users']:,} users it gains {gained} points of AUC compared"
            f" with {START}."
        )
    if "shown_later" in row:
        part = " It has no part in the choice."
        if (depends := content.get("shown_depends_on_user")) is not None and depends["told"]:
            name = max(depends["told"], key=lambda name: depends["told"][name][2])
            of_pairs = "{:.1f} [{:.1f}, {:.1f}] %".format(*(100 * value for value in depends["told"][name]))
            verdict = (
                "What is shown may depend on the user, and has no part in the choice"
                if depends["found"]
                else "No list of the user's past tells what is shown to whom, so this has a part in the choice"
            )
            part = (
                f" {verdict}: of pairs of items shown to two users in a row, {name} prefers to give each his own in"
                f" {of_pairs}, where 50 % is by chance and a pair without a preference counts half."
            )
        sentences.append(
            f"AUC of shown: of what {content['shown_later_users']:,} users were shown after their validation cases, the"
            f" share of pairs of a clicked and another item that a list orders so.{part}"
        )
    if "clicks_of_list" in row:
        sentences.append(
            "Clicked: the share of the ten places that users would click, by those of the shown items that are in their"
            " lists, each weighted by one over how often it was shown; what nobody was shown counts as not clicked."
        )
    sentences += [*_sentence(content["warning"]), *_sentence(content["training"])]
    return [*sentences, *(f"{'Also' if i else 'But'} {doubt}." for i, doubt in enumerate(content["doubts"]))]


def _sentence(text: str | None) -> list[str]:
    return [] if text is None else [f"{text[0].upper()}{text[1:]}."]


def decision_text(content: Mapping[str, Any]) -> str:
    """Return the decision for the terminal, with commands."""
    warning = _sentence(content["warning"])
    lines = [*warning, *(text for text in decision_sentences(content) if text not in warning), "", content["serve"]]
    if (refit := content.get("refit")) is not None:
        lines[-1:-1] = [
            f"What it serves is refit: the parts of {content['chosen']} were fitted once more, on all"
            f" {refit['interactions']:,} interactions, in {refit['seconds']:.1f} s. No figure above is of it;"
            " --as-measured serves the measured list.",
            "",
        ]
    trial = content["experiment"]
    if trial is not None:
        plan = f"the plan, {trial['plan']}, is frozen when the service starts"
        lines += ["", f"Or try it on users, half of whom get {content['control']}; {plan}:"]
        lines += ["", trial["serve"]]
    return "\n".join(lines)


def list_advice(result: Mapping[str, Any], decision: Mapping[str, Any] | None, called: Path) -> list[str]:
    """Return re-ranking's effect per thousand users, and the chosen list or how to choose one."""
    advice = []
    if result["verdict"]["decision"] == "use":
        own, both = (round(1000 * result["orders"][name]["hr@10"]) for name in ("policy", "mix"))
        advice.append(
            f"Of 1,000 users {own} find their next item in the policy's list of ten, and {both} in the re-ranked one"
            " (validation cases, one item each)."
        )
    if decision is None:
        command = f"`adagrpo decide --run {shlex.quote(str(called))}`"
        return [*advice, f"{command} compares all lists and prints the command that serves the best one."]
    chosen = decision["chosen"]
    found = {row["list"]: row["validation"]["ndcg@10"] for row in decision["contenders"]}
    compared = f", that of {RERANK} {found[RERANK]:.4f}" if RERANK in found and chosen != RERANK else ""
    advice.append(
        f"Serve {chosen}, which `adagrpo decide` chose: its NDCG@10 on validation is {found[chosen]:.4f}{compared}."
    )
    if (added := decision.get("reward_in_fusion")) is not None:
        mean, low, high = added
        advice.append(f"In the fused list the reward changes NDCG@10 by {mean:+.4f} ({low:+.4f} to {high:+.4f}).")
    return advice


def contenders_table(content: Mapping[str, Any]) -> Table:
    """Tabulate lists by reward from demo.json, the simplest first; trained ones at their best checkpoint.

    Of lists of counts and neighbours only the best has a row; one with the figures of another has none, unless chosen.
    """
    rows: dict[tuple[str, str], tuple[str, ...]] = {}  # by reward and list
    chosen: dict[tuple[str, str], list[str]] = {}
    for reward, decision in content["decisions"].items():
        simple = [row for row in decision["contenders"] if row["list"] in LISTED and row["list"] != "ranker"]
        best = max(simple, key=lambda row: row["validation"]["ndcg@10"], default=None)
        for row in decision["contenders"]:
            key = (MISSING if row["list"] in FREE else reward, row["list"])
            values = (*(format_metric(name, row["test"][name]) for name in SHOWN), f"{row['milliseconds']:.1f}")
            taken = row["list"] == decision["chosen"]
            if taken:
                chosen.setdefault(key, []).append(reward)
            known = {own[:-1] for own in rows.values()}
            hidden = (row in simple and row is not best) or row["list"] == "fuse-without-reward"
            if taken or not (hidden or values[:-1] in known):
                rows.setdefault(key, values)
    ordered = sorted(rows, key=lambda key: [MISSING, *content["decisions"]].index(key[0]))
    body = tuple((*key, *rows[key][:-1], ", ".join(chosen.get(key, [])), rows[key][-1]) for key in ordered)
    header = ("reward", "list", *map(metric_label, SHOWN), "chosen under", "ms")
    return Table(header, body, ("left", "left", "right", "right", "right", "left", "right"))


def trial_sentences(content: Mapping[str, Any]) -> list[str]:
    """Return for each reward the advice, and what is served."""
    sentences = []
    for reward, verdict in content["rewards"].items():
        decision, weights = content["decisions"][reward], content["fused_weights"][reward]
        tested = {row["list"]: row["test"] for row in decision["contenders"]}
        served, start = (
            {name: format_metric(name, tested[key][name]) for name in SHOWN}
            for key in (decision["chosen"], decision["control"])
        )
        sentences.append(
            f"{reward}: diagnose says {verdict['decision']}. {verdict['sentences'][1]} decide serves"
            f" {decision['chosen']}, with true utility {served[UTILITY]} and HR@10 {served[HIT]}; {decision['control']}"
            f" has {start[UTILITY]} and {start[HIT]}. In fuse the reward has weight {weights['reward']:.2f} and the"
            f" policy {weights['policy']:.2f}, in spreads."
        )
    return [*sentences, RANKER]
