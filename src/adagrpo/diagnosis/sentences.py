"""The recommendation in words, from the numbers of a diagnosis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

INVERTED = "its own order is significantly worse than chance within the policy's lists: is its sign flipped?"
TRAINING = (
    "Whether training on it helps is not measured here: `adagrpo decide --train` compares trained policies with the"
    " other lists."
)


def sentences(result: Mapping[str, Any]) -> list[str]:
    """Return the recommendation and its reasons, from the result of `adagrpo.diagnosis.diagnose`."""
    leak = leak_reason(result["leak"])
    opening = [_OPENINGS[result["verdict"]["decision"]], _why(result), *_weight(result)]
    if leak is not None:
        opening = _leak(leak, result["leak"].get("leaking") or ["the reward"])
    told = [_adds(result), _in_order(result), _leads(result), _where(result), _draws(result["verdict"]["draws"])]
    return [*opening, *told, TRAINING]


_OPENINGS = {
    "use": "Re-ranking the policy's list by this reward helps.",
    "do_not_use": "Do not re-rank the policy's list by this reward: no gain is shown.",
}


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


def _why(result: Mapping[str, Any]) -> str:
    verdict, evidence = result["verdict"], result["verdict"]["evidence"]
    adds, alone = evidence["adds"], evidence["leads_as_logged"]
    said = []
    if verdict["decision"] == "use" and adds["strength"] in ("some", "strong"):
        said.append(f"The evidence for it is {_words(verdict['strength'])}.")
    elif verdict["decision"] == "use":
        said.append("The gain is significant in some segments, and not over all cases.")
    elif not verdict["reached"]:
        own = result["orders"]["policy"]["ndcg@10"]
        said.append(
            f"These cases are too few for a decision: by re-ranking, NDCG@10 changes by {_change(adds, 4)}, which holds"
            f" a gain of 1 % of the policy's {own:.4f}; you need more validation cases."
        )
    else:
        most = f"Re-ranking by it gains at most {max(adds['high'], 0):.4f} NDCG@10"
        if alone["strength"] == "against" and not verdict["inverted"]:
            most += f"; its own order is significantly worse than the policy's, by {_change(alone, 4)}"
        said.append(f"{most}.")
    if verdict["inverted"]:
        said.append(f"{INVERTED[0].upper()}{INVERTED[1:]}")
    return " ".join(said)


def _weight(result: Mapping[str, Any]) -> list[str]:
    if result["verdict"]["decision"] == "do_not_use":
        return []
    weight, spread, warning = (result["reranking"][name] for name in ("weight", "spread", "warning"))
    if weight == 0:
        return ["Over all cases no weight of the reward is better than none; re-rank only in the segments named below."]
    said = "" if warning is None else f"; {warning}"
    unit = f"in units of the reward's spread within a list, {spread:.3g}"
    return [f"The weight that is best on validation is {weight:g}, {unit}{said}."]


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
        " of its item."
    )


def _in_order(result: Mapping[str, Any]) -> str:
    shares = {name: 0.5 + result["verdict"]["evidence"]["orders"][name] for name in ("mean", "low", "high")}
    mean, low, high = (f"{100 * share:.1f}" for share in shares.values())
    return (
        f"Where the policy's list holds the logged item, the reward puts it above {mean} % ({low} to {high}) of the"
        " others; 50 % is chance."
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


def _rate(share: float) -> str:
    return f"{100 * share:.1f} %"


def _change(interval: Mapping[str, float], digits: int, factor: float = 1) -> str:
    # what rounds to nothing has no minus
    mean, low, high = (round(factor * interval[name], digits) + 0.0 for name in ("mean", "low", "high"))
    return f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
