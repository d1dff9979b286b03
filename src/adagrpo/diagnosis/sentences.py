"""The recommendation in words, from the numbers of a diagnosis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

INVERTED = "its own order is significantly worse than chance within the policy's lists: is its sign flipped?"
OPENINGS = {
    "use": "Re-ranking the policy's list by this reward helps.",
    "do_not_use": "Do not re-rank the policy's list by this reward: no gain is shown.",
}
STRENGTHS = {"strong": "strong", "some": "significant, but not strong"}
TRAINING = (
    "Whether training on it helps is not measured here: `adagrpo decide --train` compares trained policies with the"
    " other lists."
)


def sentences(result: Mapping[str, Any]) -> list[str]:
    """Return the recommendation and its reasons, from the result of `adagrpo.diagnosis.diagnose`."""
    verdict, evidence = result["verdict"], result["verdict"]["evidence"]
    if (leak := leak_reason(result["leak"])) is not None:
        leaking = result["leak"].get("leaking") or ["the reward"]
        it, signs = "it has", "The signs"
        if leaking[0] != "the reward":  # members of a sum
            has = "has" if len(leaking) == 1 else "have"
            it, signs = f"{' and '.join(leaking)} {has}", f"The signs of {leaking[0]}"
        opening = [
            f"Do not use this reward before it is checked: {it} probably seen the held-out items, and nothing that is"
            " measured of it here will hold.",
            f"{signs}: {leak}. Check that all that it was fitted on or counts ends where training ends"
            " (prepare/training_logs.parquet); a reward that truly knows more than the logs can look like this.",
        ]
    else:
        opening = [OPENINGS[verdict["decision"]], _why(result)]
        weight, std, warning = (result["reranking"][name] for name in ("weight", "spread", "warning"))
        if verdict["decision"] == "use" and weight == 0:
            opening.append(
                "Over all cases no weight of the reward is better than none; re-rank only in the segments named below."
            )
        elif verdict["decision"] == "use":
            unit = f"in units of the reward's spread within a list, {std:.3g}"
            edge = "" if warning is None else f"; {warning}"
            opening.append(f"The weight that is best on validation is {weight:g}, {unit}{edge}.")
    mix, draws, where = result["all"]["minus_policy"]["mix"], verdict["draws"], verdict["where"]
    mean, low, high = (f"{100 * (0.5 + evidence['orders'][name]):.1f}" for name in ("mean", "low", "high"))
    gains = f"The gain is significant in: {'; '.join(where)}."
    if not where:
        gains = "The gain is significant in no segment that is known when serving."
    elif where[0] == result["all"]["cell"]:
        cells = f"{len(where) - 1} of {len(result['serving'])} segments known when serving"
        gains = f"The gain is significant over all cases, and in {cells}."
    return [
        *opening,
        f"Ordered by policy and ranker together, NDCG@10 changes by {_change(evidence['adds'], 4)} and HR@10 by"
        f" {_change(mix['hr@10'], 2, 100)} points, on average over {draws['halvings']:,} random splits of the users"
        " into halves, each half with the weight that is best on the other.",
        f"Where the policy's list holds the logged item, the reward puts it above {mean} % ({low} to {high}) of the"
        " others; 50 % is chance.",
        f"Ordered by the ranker alone, NDCG@10 changes by {_change(evidence['leads_as_logged'], 4)} over the logged"
        f" cases, and by {_change(evidence['leads'], 4)} with each case weighted by one over the {verdict['counted']}"
        " of its item.",
        gains,
        "With another seed the gain of policy and ranker together would change by about"
        f" {_rate(draws['share_of_the_error'])} of its standard error, and that of the ranker alone not at all.",
        TRAINING,
    ]


def leak_reason(leak: Mapping[str, Any] | None) -> str | None:
    """Return how `leak_signs` shows that a reward has probably seen the held-out items; None without a sign."""
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


def _why(result: Mapping[str, Any]) -> str:
    verdict, evidence = result["verdict"], result["verdict"]["evidence"]
    adds, alone = evidence["adds"], evidence["leads_as_logged"]
    if verdict["decision"] == "use" and adds["strength"] in ("some", "strong"):
        why = f"The evidence for it is {STRENGTHS[verdict['strength']]}."
    elif verdict["decision"] == "use":
        why = "The gain is significant in some segments, and not over all cases."
    elif not verdict["reached"]:
        own = result["orders"]["policy"]["ndcg@10"]
        why = (
            f"These cases are too few for a decision: by re-ranking, NDCG@10 changes by {_change(adds, 4)}, which holds"
            f" a gain of 1 % of the policy's {own:.4f}; you need more validation cases."
        )
    else:
        why = f"Re-ranking by it gains at most {max(adds['high'], 0):.4f} NDCG@10"
        if alone["strength"] == "against" and not verdict["inverted"]:
            why += f"; its own order is significantly worse than the policy's, by {_change(alone, 4)}"
        why += "."
    return why + (f" {INVERTED[0].upper()}{INVERTED[1:]}" if verdict["inverted"] else "")


def _rate(share: float) -> str:
    return f"{100 * share:.1f} %"


def _change(interval: Mapping[str, float], digits: int, factor: float = 1) -> str:
    # what rounds to nothing has no minus
    mean, low, high = (round(factor * interval[name], digits) + 0.0 for name in ("mean", "low", "high"))
    return f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
