"""Team-draft interleaving: one list of two arms, and which of them users prefer.

    each round     a coin decides which arm picks first; each then picks its best item that nobody has picked
    p_u            clicks of user u on the treatment's items, of u's clicks on either's
    preference     the mean of p_u over users who clicked; 1/2 where neither is preferred

Radlinski et al., CIKM 2008. Coins are bits of HMAC-SHA256(salt, request id).
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import polars as pl
from scipy import stats

from adagrpo.data.exposures import timely
from adagrpo.errors import UserError
from adagrpo.experiments.duration import anytime_factor
from adagrpo.experiments.plan import Plan, moment_of
from adagrpo.experiments.units import FAILED
from adagrpo.experiments.validity import LEVEL

ItemT = TypeVar("ItemT")
INTERLEAVED = "interleaved"  # `deal` of an interleaved list
REQUEST, USER, ITEM = "request_id", "user_hash", "item"
FEWEST = 30  # users who clicked; with fewer, the normal interval is too narrow


def coins(salt: str, request_id: str) -> Iterator[bool]:
    """Yield a request's coins: True lets the first arm pick first."""
    block = 0
    while True:
        digest = hmac.new(salt.encode(), f"{request_id}/{block}".encode(), hashlib.sha256).digest()
        for byte in digest:
            for bit in range(8):
                yield bool(byte >> bit & 1)
        block += 1


def team_draft(
    first: Sequence[ItemT], second: Sequence[ItemT], count: int, flips: Iterator[bool]
) -> list[tuple[int, int]]:
    """Return arm (0 or 1) and rank in its list for each of at most `count` joint ranks."""
    lists, nexts = (first, second), [0, 0]
    chosen: set[ItemT] = set()
    drafted: list[tuple[int, int]] = []
    while len(drafted) < count and any(nexts[arm] < len(lists[arm]) for arm in (0, 1)):
        for arm in (0, 1) if next(flips) else (1, 0):
            while nexts[arm] < len(lists[arm]) and lists[arm][nexts[arm]] in chosen:
                nexts[arm] += 1
            if nexts[arm] < len(lists[arm]) and len(drafted) < count:
                chosen.add(lists[arm][nexts[arm]])
                drafted.append((arm, nexts[arm]))
    return drafted


class Preference(NamedTuple):
    """Mean of p_u and its standard error."""

    share: float
    error: float  # standard error over users
    users: int  # who clicked

    def within(self, factor: float) -> tuple[float, float]:
        """Return the interval of `factor` standard errors to each side."""
        return self.share - factor * self.error, self.share + factor * self.error


def estimate_preference(credits: pl.DataFrame) -> Preference | None:
    """Estimate the preference from clicks by user and arm; None for fewer than two users."""
    clicked = credits.filter(pl.col("control") + pl.col("treatment") > 0)
    shares = (clicked["treatment"] / (clicked["control"] + clicked["treatment"])).to_numpy()
    if len(shares) < 2:
        return None
    return Preference(float(shares.mean()), float(shares.std(ddof=1)) / math.sqrt(len(shares)), len(shares))


def analyse_interleaving(
    plan: Plan,
    exposures: pl.DataFrame,  # one row per answer
    feedback: pl.DataFrame,  # one row per request, item and kind
    *,
    now: datetime,  # time of the look; `looks: end` shows nothing before the end
    stops: Mapping[str, float] = MappingProxyType({}),  # by arm, seconds since 1970; a stopped arm is never `preferred`
    mismatch: str | None = None,  # why the log is invalid, see `validity`
) -> dict[str, Any]:
    """Analyse an experiment of kind `interleaving`; `UserError` if the log has no list of it.

    JSON: `verdicts`, `reasons`, `preference`, `daily`, `stopped`, and counts; failed requests are `without_list`.
    """
    (treatment,) = plan.treatments

    def judged(verdict: str, reason: str) -> dict[str, Any]:
        return result | {"verdicts": {treatment: verdict}, "reasons": {treatment: reason}}

    def ends_of(found: Preference, answers: int) -> tuple[float, float]:
        if plan.looks == "daily" and plan.answers is not None:
            return found.within(anytime_factor(answers, plan.answers, plan.alpha))
        return found.within(float(stats.norm.isf(plan.alpha / 2)))

    asked = exposures.unique(REQUEST, keep="first", maintain_order=True).filter(
        (pl.col("experiment") == plan.name)
        & (pl.col("deal") == INTERLEAVED)
        & (pl.col("time") >= plan.begins)
        & (pl.col("time") < plan.ends)
        & ~pl.col(USER).is_in(list(plan.exclude))
    )
    answers = asked.filter((~FAILED).fill_null(True) & (pl.col("slate").list.len() > 0))
    if answers.is_empty():
        raise UserError(f"the log has no interleaved list of {plan.name!r} in its window")
    shown = answers.select(REQUEST, pl.col("time").alias("shown"))
    clicks = timely(feedback.filter(pl.col("kind") == plan.credit).join(shown, on=REQUEST), plan.within_seconds)
    credits = _credits(plan, answers, clicks.feedback)
    of_both = answers.filter(pl.col("teams").list.n_unique() == 2)  # else one arm had no list, so no coin was used
    first = int((of_both["teams"].list.first() == treatment).sum())
    fair = float(stats.binomtest(first, len(of_both)).pvalue) if len(of_both) else 1.0
    result: dict[str, Any] = {
        "experiment": plan.name,
        "kind": plan.kind,
        "look": now.isoformat(timespec="seconds"),
        "users": {"shown": answers[USER].n_unique(), "clicked": len(credits)},
        "answers": len(answers),
        "without_list": len(asked) - len(answers),
        "feedback_early": clicks.early,
        "feedback_late": clicks.late,
        "first_place": {"treatment": first / max(1, len(of_both)), "p_value": fair},
        "stopped": {arm: moment_of(time) for arm, time in stops.items()},
        "preference": None,
        "daily": [],
    }
    if mismatch is not None:
        return judged("invalid", mismatch)
    models = answers.group_by("model_version").agg(pl.col("time").min()).sort("time")
    if len(models) > 1:
        last, since = models.row(-1)
        others = f"lists are of {len(models)} pairs of models, of {last} from {moment_of(since)} on"
        return judged("invalid", f"{others}; plan another experiment")
    if plan.looks == "end" and now.timestamp() < plan.ends:
        ends = datetime.fromtimestamp(plan.ends, UTC).date()
        return judged("inconclusive", f"the plan looks at the end, and the window ends on {ends}")
    if fair < LEVEL:
        reason = f"{treatment} is first in {first:,} of {len(of_both):,} lists, p = {fair:.1e}; the coin was not fair"
        return judged("invalid", reason)
    found = estimate_preference(credits)
    if found is None or found.users < FEWEST:
        clicked = 0 if found is None else found.users
        reason = f"{clicked or 'fewer than two'} users clicked, of {FEWEST} needed"
        if plan.credit not in (kinds := sorted(feedback["kind"].unique())):
            known = ", ".join(kinds) or "none"
            reason = f"the log has no feedback of kind {plan.credit!r} (credit); its kinds are {known}"
        return judged("inconclusive", reason)
    low, high = ends_of(found, len(answers))
    result["preference"] = {"share": found.share, "interval": [low, high], "users": found.users}
    day = pl.from_epoch(pl.col("time").floor().cast(pl.Int64)).dt.date()
    for through in sorted(answers.select(day.unique())["time"]):
        part = answers.filter(day <= through)
        until = estimate_preference(_credits(plan, part, clicks.feedback))
        if until is not None and until.users >= FEWEST:
            around = [*ends_of(until, len(part))]
            result["daily"].append({"through": through.isoformat(), "share": until.share, "interval": around})
    verdict = "inconclusive" if low <= 0.5 <= high else "preferred" if found.share > 0.5 else "not preferred"
    reason = f"{found.share:.1%} of a user's credited clicks are on its items ({low:.1%} to {high:.1%})"
    if treatment in stops:
        verdict = "inconclusive" if verdict == "preferred" else verdict
        until_then = "and what is said is of the time until then"
        reason = f"it was stopped on {result['stopped'][treatment]}, {until_then}: {reason}"
    return judged(verdict, reason)


def _credits(plan: Plan, answers: pl.DataFrame, clicks: pl.DataFrame) -> pl.DataFrame:
    items = answers.select(REQUEST, USER, pl.col("slate").alias(ITEM), "teams").explode(ITEM, "teams")
    found = items.join(clicks.select(REQUEST, ITEM).unique(), on=[REQUEST, ITEM], how="inner")
    of_control, of_treatment = (pl.col("teams") == plan.control).sum(), (pl.col("teams") != plan.control).sum()
    return found.group_by(USER, maintain_order=True).agg(of_control.alias("control"), of_treatment.alias("treatment"))
