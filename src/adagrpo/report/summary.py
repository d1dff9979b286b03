"""Summarize in plain sentences what the arms did, gains and losses alike.

The policy singled out is the one chosen by NDCG@10 on validation. The sampling error is the binomial
`1.96 sqrt(p (1 - p) / N)` of `N` cases, without seed variance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from adagrpo.evaluation.comparison import GATE_CONTROLS, GATED
from adagrpo.report.tables import START, Checkpoint, checkpoints, format_metric, format_relative
from adagrpo.report.training import control_sentence

HR = "hr@10"
NDCG = "ndcg@10"  # of validation, by which checkpoints are chosen
JUDGED = {HR: "HR@10", "true_utility@10": "true utility"}
MOST_NAMED = 8  # values of a filter that a sentence names


def summary_sentences(
    metrics: Mapping[str, Any], *, baselines: bool = True, paired: Mapping[str, Any] | None = None
) -> list[str]:
    """Summarize the run in a few sentences, with the differences in `paired.json`; UserError if it is malformed."""
    points = checkpoints(metrics)
    split = "test" if any(point.value("test", HR) is not None for point in points) else "validation"
    start = _best(points, START)
    arms = [point for point in points if point.kind == "best" and point.value(split, HR) is not None]
    below = []
    own = None if start is None else start.value("validation", NDCG)
    if baselines and own is not None:
        known = {name: (metrics.get("baselines") or {}).get(name) or {} for name in ("item_knn", "popularity")}
        values = {name: splits.get("validation", {}).get(NDCG) for name, splits in known.items()}
        if named := [f"{name} ({value:.4f})" for name, value in values.items() if (value or 0) > own]:
            below = [
                f"The starting policy ({own:.4f}) is below {' and '.join(named)} in NDCG@10 on validation: it has"
                " learned little from these logs."
            ]
    if not arms:
        return [*below, "No post-trained arm has been evaluated yet, so there is nothing to compare."]
    hacked = []
    for point in arms:
        fell = [label for name, label in JUDGED.items() if start and _change(point, start, split, name) < 0]
        if start and fell and _change(point, start, split, "mean_reward@10") > 0:
            hacked.append(f"The reward of {point.arm} rose while its {' and '.join(fell)} fell.")
    narrowed, sample, sentences = metrics.get("eligible"), metrics.get("validation_sample"), below
    if narrowed:
        sentences.append(f"All of this is measured over {measured_over(narrowed).rstrip(',')}.")
    if sample:
        sentences.append(f"Validation is measured on a fixed sample of {sample:,} cases.")
    sentences += [*_picked(arms, start, split), *hacked]
    for row in (paired or {}).get("against", ()):
        if row["arm"] == GATED and row["checkpoint"] == "final" and row["reference"] in GATE_CONTROLS:
            sentences.append(control_sentence(row["reference"], row["metrics"]))
    rows = [(name, row[HR]) for name, row in rerank_rows(metrics) if "test" not in name and row.get(HR) is not None]
    trained = max(_or_least(point.value("validation", HR)) for point in arms)
    if rows and trained != -math.inf:
        name, value = max(rows, key=lambda row: float(row[1]))
        sentences.append(
            f"Re-ranking the sft beam at serving time (by {name.rpartition(' / ')[2]}) reaches HR@10 of"
            f" {format_metric(HR, value)} on validation, {'more' if value > trained else 'no more'} than the best arm's"
            f" {format_metric(HR, trained)}."
        )
    return [*sentences, _uncertainty(metrics, arms, split)]


def measured_over(eligible: Mapping[str, Any] | None) -> str:
    """Describe the evaluated items, and how many cases were left out.

    >>> measured_over({"include": {"brand": ["acme"]}, "items": 7, "cases_left_out": {"validation": 2, "test": 3}})
    'the 7 items of `evaluation.eligible`, include brand=acme (3 test cases of other items left out),'
    >>> measured_over(None)
    'the full catalogue'
    """
    if eligible is None:
        return "the full catalogue"
    filters = []
    for way in ("include", "exclude"):
        named = [f"{column}={value}" for column, values in (eligible.get(way) or {}).items() for value in values]
        more = [f"{len(named) - MOST_NAMED:,} more"] if len(named) > MOST_NAMED else []
        filters += [f"{way} {', '.join([*named[:MOST_NAMED], *more])}"] if named else []
    return (
        f"the {eligible['items']:,} items of `evaluation.eligible`, {'; '.join(filters) or 'which names none'}"
        f" ({eligible['cases_left_out']['test']:,} test cases of other items left out),"
    )


def rerank_rows(metrics: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the serving-time re-rankings in `metrics.json`, at any depth."""
    ranker = metrics.get("ranker")
    return list(_leaves(ranker.get("rerank"), ())) if isinstance(ranker, Mapping) else []


def _picked(arms: list[Checkpoint], start: Checkpoint | None, split: str) -> list[str]:
    policies = arms if start is None or start.value(split, HR) is None else [start, *arms]
    measured = [[point.value("validation", name) for name in (NDCG, HR)] for point in policies]
    by_validation = [_or_least(hits if ndcg is None else ndcg) for ndcg, hits in measured]
    picked = policies[by_validation.index(max(by_validation))]
    hits, before = (None if one is None else one.value(split, HR) for one in (picked, start))
    sentence = f"Validation picks {START}, the starting policy; its HR@10 on {split} is {_text(picked, split)}."
    if picked is not start:
        parts = []
        for reference, name in ((start, "sft"), (_best(arms, "nll"), "continued NLL")):
            known = None if reference is None or reference.arm == picked.arm else reference.value(split, HR)
            if known and hits is not None:
                parts.append(f"{format_relative(hits, known)} relative to {name}")
        compared = f" ({', '.join(parts)})" if parts else ""
        sentence = f"Validation picks {picked.arm}; its HR@10 on {split} is {_text(picked, split)}{compared}."
    compared = "" if before is None or picked is start else f", with {START} {1000 * before:.0f}"
    sentences = [sentence, f"Of 1,000 users {1000 * (hits or 0):.0f} find their next item in a list of ten{compared}."]
    highest = max(arms, key=lambda point: _or_least(point.value(split, HR)))
    if _text(highest, split) != _text(picked, split):
        sentences.append(f"On {split} itself {highest.arm} is higher, at {_text(highest, split)}.")
    if start is not None and before is not None:
        below = [point.arm for point in arms if _change(point, start, split, HR) < 0]
        if len(below) == len(arms):
            sentences.append(f"No arm beats the starting policy on {split}: post-training did not help here.")
        elif below:
            sentences.append(f"Below the starting policy on {split}: {', '.join(below)}.")
    return sentences


def _uncertainty(metrics: Mapping[str, Any], arms: list[Checkpoint], split: str) -> str:
    sentence = "This is one seed: small differences can change sign with another one"
    dataset = metrics.get("dataset")
    cases = dataset.get(f"{split}_cases") if isinstance(dataset, Mapping) else None
    if isinstance(cases, int):
        cases -= ((metrics.get("eligible") or {}).get("cases_left_out") or {}).get(split, 0)
        cases = cases if split == "test" else metrics.get("validation_sample", cases)
    if not isinstance(cases, int) or cases < 1:
        return sentence + "."
    rate = max(_or_least(point.value(split, HR)) for point in arms)
    error = 196 * math.sqrt(rate * (1 - rate) / cases)
    return sentence + f", and {cases:,} cases leave each HR@10 uncertain by about ±{error:.2f} points (95 %)."


def _change(point: Checkpoint, start: Checkpoint, split: str, name: str) -> float:
    """Return the change of a metric; 0 if unknown or printed alike."""
    after, before = point.value(split, name), start.value(split, name)
    if after is None or before is None or format_metric(name, after) == format_metric(name, before):
        return 0.0
    return after - before


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not isinstance(value, Mapping):
        return
    if any(isinstance(item, int | float) for item in value.values()):
        yield " / ".join(path) or "re-ranked", value
    for key, item in value.items():
        yield from _leaves(item, (*path, key))


def _best(points: list[Checkpoint], arm: str) -> Checkpoint | None:
    return next((point for point in points if point.arm == arm and point.kind != "final"), None)


def _text(point: Checkpoint, split: str) -> str:
    return format_metric(HR, point.value(split, HR))


def _or_least(value: float | None) -> float:
    return -math.inf if value is None else value
