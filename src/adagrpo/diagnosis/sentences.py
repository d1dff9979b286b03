"""The recommendation in words, from the numbers of a diagnosis. A loss is said as plainly as a gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adagrpo.objective import GroupSummary


def sentences(result: Mapping[str, Any]) -> list[str]:
    """Say what to do, and why, from the result of `adagrpo.diagnosis.diagnose`."""
    leak = leak_reason(result["leak"])
    opening = [_OPENINGS[result["verdict"]["decision"]], _strength(result), *_weight(result)]
    if leak is not None:
        opening = _leak(leak, result["leak"].get("leaking") or ["the reward"])
    return [*opening, _adds(result), _leads(result), _where(result), _draws(result["verdict"]["draws"])]


def gate_sentences(result: Mapping[str, Any]) -> list[str]:
    """Say what the gate admits, and what speaks against it; the verdict reads none of it."""
    return [*_thresholds(result), _gate(result["gate"])]


_OPENINGS = {
    "use": "Re-rank with this ranker at serving time; training on it (`distill-tuned`) is optional.",
    "rerank_only": "Re-rank with this ranker at serving time; nothing supports training on it.",
    "do_not_use": "Do not use this ranker here: nothing shows that it knows what the policy does not. Serve a list"
    " without it, see `adagrpo decide`.",
}


def leak_reason(leak: Mapping[str, Any] | None) -> str | None:
    """Say by which of `leak_signs` a reward has probably seen the held-out items; None without a sign."""
    if leak is None or not leak["signs"]:
        return None
    first, best = leak["hr@1"], max(leak["references"], key=lambda name: leak["references"][name])
    why = {
        "remembers": f"it puts {_rate(first['held-out items'])} of the held-out items first, and of the users' last"
        f" training items only {_rate(first['last training items'])}",
        "ahead": f"it puts {_rate(first['held-out items'])} of the held-out items first, where the best ranker of"
        f" training alone, {best}, puts {_rate(leak['references'][best])}",
        "certain": f"of the held-out items of which it is surest it puts {_rate(first['held-out items, surest'])}"
        " first, far more than any ranker of training alone",
    }
    return f"among the same drawn items {'; '.join(why[sign] for sign in leak['signs'])}"


def _leak(reason: str, leaking: Sequence[str]) -> list[str]:
    it, signs = "it has", "The signs"
    if leaking[0] != "the reward":  # members of a sum
        it, signs = f"{' and '.join(leaking)} {'has' if len(leaking) == 1 else 'have'}", f"The signs of {leaking[0]}"
    return [
        f"Do not use this reward before it is checked: {it} probably seen the held-out items, and nothing that is"
        " measured of it here will hold.",
        f"{signs}: {reason}. Check that all that it was fitted on or counts ends where training ends"
        " (prepare/training_logs.parquet); a reward that truly knows more than the logs can look like this.",
    ]


def _strength(result: Mapping[str, Any]) -> str:
    """Say how sure the decision is, or that the data allow none."""
    verdict = result["verdict"]
    decision, evidence = verdict["decision"], verdict["evidence"]
    if not verdict["reached"]:
        ends = f"{evidence['adds']['low']:+.4f} and {evidence['adds']['high']:+.4f}"
        return (
            f"These cases are too few for a decision: the change of NDCG@10 by re-ranking is between {ends}, with 0"
            " inside or too close; you need more validation cases."
        )
    if decision == "do_not_use":
        return "Re-ranking by it significantly lowers NDCG@10."
    if decision == "use":
        return (
            f"The evidence that re-ranking helps is {_words(verdict['strength'])}, and strong that the reward's own"
            " order is better than the policy's. That does not say that training helps: in simulated worlds with this"
            " verdict it lowered true utility more often than not, so compare before you serve it."
        )
    leads = evidence["leads"]["strength"]
    whether = {
        "against": "Do not train on it: its own order is significantly worse than the policy's.",
        "none": "Whether training on it helps is not known: its own order is not distinguishable from the policy's.",
        "some": "For training on it there is some evidence, which is not enough.",
        "strong": "Training would need a significant gain of re-ranking over all cases, which there is not.",
    }[leads]
    gains = f"The evidence that re-ranking helps is {_words(verdict['strength'])}."
    if evidence["adds"]["strength"] not in ("some", "strong"):
        gains = "The gain of re-ranking is significant in some segments, and not over all cases."
    return f"{gains} {whether}"


def _weight(result: Mapping[str, Any]) -> list[str]:
    """The weight to serve with, where re-ranking is advised."""
    if result["verdict"]["decision"] == "do_not_use":
        return []
    weight, spread, warning = (result["reranking"][name] for name in ("weight", "spread", "warning"))
    if weight == 0:
        return ["Over all cases no weight of the reward is better than none; re-rank only in the segments named below."]
    unit = f"`serve --reward-weight {weight:g}`, in units of the reward's spread within a list, {spread:.3g}"
    said = "" if warning is None else f"; {warning}"
    return [f"The weight that is best on validation: {unit}{said}."]


def _words(strength: str) -> str:
    return {"strong": "strong", "some": "significant, but not strong"}[strength]


def _adds(result: Mapping[str, Any]) -> str:
    row = result["all"]["minus_policy"]
    mix, halvings = row["mix"], result["verdict"]["draws"]["halvings"]
    return (
        f"Ordered by policy and ranker together, NDCG@10 changes by {_change(result['verdict']['evidence']['adds'], 4)}"
        f" and HR@10 by {_change(mix['hr@10'], 2, 100)} points, on average over {halvings:,} random splits of the users"
        " into halves, each half with the weight that is best on the other."
    )


def _leads(result: Mapping[str, Any]) -> str:
    verdict = result["verdict"]
    evidence = verdict["evidence"]
    return (
        f"Ordered by the ranker alone, NDCG@10 changes by {_change(evidence['leads_as_logged'], 4)} over the logged"
        f" cases, and by {_change(evidence['leads'], 4)} with each case weighted by one over the {verdict['counted']}"
        " of its item; training moves the policy toward this order."
    )


def _draws(draws: Mapping[str, Any]) -> str:
    return (
        f"With another seed the gain of policy and ranker together would change by about"
        f" {_rate(draws['share_of_the_error'])} of its standard error, and that of the ranker alone not at all."
    )


def _where(result: Mapping[str, Any]) -> str:
    where, cells = result["verdict"]["where"], len(result["serving"])
    if not where:
        return "The gain is significant in no segment that is known when serving."
    if where[0] == result["all"]["cell"]:
        return (
            f"The gain is significant over all cases, and in {len(where) - 1} of {cells} segments known when serving."
        )
    return f"The gain is significant in: {'; '.join(where)}."


def _thresholds(result: Mapping[str, Any]) -> list[str]:
    """Say what speaks against the gate at the configured thresholds, by one draw of the groups."""
    settings, p_values = result["settings"], result["verdict"]["thresholds_adjusted_p"]
    rows = list(zip(result["grid"], p_values, strict=True))
    row, p = next(pair for pair in rows if (pair[0]["tau"], pair[0]["q_min"]) == (settings["tau"], settings["q_min"]))
    if p <= settings["level"]:
        return []
    reasons = []
    if row["excess"]["low"] <= 0:
        reasons.append("the gate admits no more groups than it would with shuffled rewards")
    if row["pull_on_hard"]["low"] <= 0:
        reasons.append("on hard groups the reward does not pull toward the logged item beyond the policy's own score")
    if not reasons:
        pull = _change(row["pull_on_hard"], 2, 100)
        reasons = [f"the evidence (pull {pull} % of the codes) does not hold among {len(rows)} pairs of thresholds"]
    at = f"A gate at tau {settings['tau']:g}, q_min {settings['q_min']:g} is not supported: "
    return [at + ", and ".join(reasons) + f" (adjusted p {p:.3f})."]


def _gate(gate: Mapping[str, Any]) -> str:
    sample, beam = (GroupSummary.of_row(gate[kind]) for kind in ("sample", "beam"))
    return (
        f"The gate admits {_rate(sample.admission)} of the sampled groups and would admit"
        f" {_rate(sample.shuffled_admission)} with shuffled rewards; of beam groups it admits"
        f" {_rate(beam.admission)} and {_rate(beam.shuffled_admission)}."
    )


def _rate(share: float | None) -> str:
    assert share is not None, "a diagnosis measures both kinds of groups"
    return f"{100 * share:.1f} %"


def _change(interval: Mapping[str, float], digits: int, factor: float = 1) -> str:
    # what rounds to nothing has no minus
    mean, low, high = (round(factor * interval[name], digits) + 0.0 for name in ("mean", "low", "high"))
    return f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
