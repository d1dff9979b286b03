"""One row per user from the exposure log: arm, first appearance, and the sums named in a plan.

    answers          lists that were shown
    errors           requests that got none; `requests` are both together
    impressions      their items; `distinct_items` counts each once
    fallbacks        answers with the popular list
    degraded         answers without the reward that orders the arm's lists
    latency_ms       summed over answers; `slow` counts answers above the plan's `slow_ms`
    empty            answers without an item
    tail             impressions of items outside the most shown `HEAD` of the days before
    unlisted         impressions of items outside the plan's catalogue
    KIND             feedback of a kind: the first per request, item and kind, on an item of the list, within
                     `within_seconds` after its answer
    KIND.value       its values, such as the seconds of dwell

The arm is the one that the plan assigns, whatever was served (intention to treat). Answers outside the ramp, and to
users of a stopped arm, are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import polars as pl

from adagrpo.data.exposures import timely
from adagrpo.errors import UserError
from adagrpo.experiments.allocation import assign_by
from adagrpo.experiments.plan import DAY, Guardrail, Plan, PlannedMetric, moment_of

HEAD = 0.2  # share of the items, most shown first
FAILED = pl.col("source") == "failed"
OF_ANSWERS = {
    "answers": (~FAILED).sum(),
    "errors": FAILED.sum(),
    "requests": pl.len(),
    "fallbacks": (pl.col("source") == "popular").sum(),
    "degraded": pl.col("degraded").is_not_null().sum(),
    "latency_ms": pl.col("latency_ms").filter(~FAILED).sum(),
    "empty": ((pl.col("slate").list.len() == 0) & ~FAILED).sum(),
}
SLOW = "slow"
OF_ITEMS = ("impressions", "distinct_items", "tail", "unlisted")
REQUEST, USER, ITEM, KIND = "request_id", "user_hash", "item", "kind"


def column_of(name: str) -> str:
    """Return the column of a sum, prefixed since a kind may be called `day`."""
    return f"sum: {name}"


def kind_of(name: str) -> str | None:
    """Return the kind of feedback that a sum counts, or None."""
    return None if name in {*OF_ANSWERS, *OF_ITEMS, SLOW} else name.removesuffix(".value")


def before_of(name: str) -> str:
    """Return the column of the sum before the start."""
    return f"before: {name}"


NO_EVENTS = pl.DataFrame(schema={USER: pl.String, "arm": pl.String, KIND: pl.String, "events": int, "left_out": int})


class Units(NamedTuple):
    """Users, and counts of left-out events by first cause."""

    users: pl.DataFrame  # user_hash, arm, day, catalogue, `sum: NAME` of each sum, `before: NAME` of covariates
    answers: int
    answers_excluded: int  # of excluded users
    answers_held_out: int
    answers_misassigned: int  # of another arm than the user's
    answers_outside: int = 0  # of users not reached by the ramp
    answers_stopped: int = 0  # of users of a stopped arm, who got the control
    requests_failed: int = 0  # without a list
    feedback_early: int = 0  # before the answer
    feedback_late: int = 0  # more than `within_seconds` after the answer
    feedback_not_shown: int = 0  # on items not in the answer
    feedback_repeated: int = 0  # of a request, item and kind counted already
    feedback_unknown: int = 0  # of the plan's kinds in its window, of requests not in the log
    events: pl.DataFrame = NO_EVENTS  # per user and kind: all feedback on counted answers, and left out
    models: Mapping[str, Mapping[str, float]] = MappingProxyType({})  # by arm: models, and when each was first seen
    kinds: tuple[str, ...] = ()  # of feedback in the log
    unseen: tuple[str, ...] = ()  # kinds in the plan but not in the log, counted as 0


class Earlier(NamedTuple):
    """Users of the covered days before the start."""

    users: pl.DataFrame  # as of `Units`
    begin: float  # seconds since 1970
    end: float

    @property
    def days(self) -> float:
        """Covered days, fractional."""
        return (self.end - self.begin) / DAY


def users_of(
    plan: Plan,
    exposures: pl.DataFrame,  # one row per answer
    feedback: pl.DataFrame,  # one row per request, item and kind
    catalogue: Iterable[str] = (),  # existing items, for `unlisted`
    until: float = math.inf,  # end of the window, seconds since 1970, at most the plan's
    since: float | None = None,  # its start; None: the plan's
) -> Units:
    """Return the users shown something in a plan's window; `UserError` if a metric cannot be had."""
    names = _summed([*plan.metrics.values(), *plan.guardrails.values()])
    answers = exposures.unique(REQUEST, keep="first", maintain_order=True).filter(pl.col(USER).is_not_null())
    begin = plan.begins if since is None else since
    time = pl.col("time")
    earlier = answers.filter((time >= begin - plan.days_before * DAY) & (time < begin))
    own = answers.filter(pl.col("experiment") == plan.name)
    if own.is_empty():  # of a router
        own = answers.filter(pl.col("experiment").is_null())
    rows = own.filter((time >= begin) & (time < min(until, plan.ends)))
    window = rows.filter(pl.col("deal").is_null() | pl.col("deal").is_in(["arm", "held out"]))
    included = window.filter(~pl.col(USER).is_in(list(plan.exclude)))
    hashes = included[USER].unique(maintain_order=True)
    arms = [assign_by(plan, user) for user in hashes]
    placed = included.join(pl.DataFrame({USER: hashes, "assigned": pl.Series(arms, dtype=pl.String)}), on=USER)
    shown = placed.filter(pl.col("assigned").is_not_null())
    given = shown.filter(~FAILED)
    first = shown.sort("time", maintain_order=True).group_by(USER, maintain_order=True).first()
    day = pl.from_epoch(pl.col("time").floor().cast(pl.Int64)).dt.date().alias("day")
    users = first.select(USER, pl.col("assigned").alias("arm"), day, pl.col("catalog_version").alias("catalogue"))
    served = shown.filter(_as_assigned(plan)).group_by("assigned", "model_version").agg(pl.col("time").min())
    models: dict[str, dict[str, float]] = {}
    for arm, model, seen in served.sort("time").iter_rows():
        models.setdefault(arm, {})[model] = seen
    event = [REQUEST, ITEM, KIND]
    asked = feedback.join(answers.select(REQUEST, time.alias("shown")), on=REQUEST, maintain_order="left")
    on_answers = timely(asked, plan.within_seconds).feedback.unique(event, keep="first", maintain_order=True)
    arm_of = shown.select(REQUEST, USER, pl.col("assigned").alias("arm"))
    on_shown = asked.join(arm_of, on=REQUEST, maintain_order="left")
    of_shown = timely(on_shown, plan.within_seconds)
    items = shown.select(REQUEST, pl.col("slate").alias(ITEM)).explode(ITEM)
    of_items = of_shown.feedback.join(items, on=[REQUEST, ITEM], how="semi")
    counted = of_items.unique(event)
    kinds = [kind for kind in map(kind_of, names) if kind is not None]
    of_user = [USER, "arm", KIND]
    events = on_shown.filter(pl.col(KIND).is_in(kinds)).group_by(of_user).agg(pl.len().alias("events"))
    events = events.join(counted.group_by(of_user).agg(pl.len().alias("kept")), on=of_user, how="left").select(
        *of_user,
        pl.col("events").cast(pl.Int64),
        (pl.col("events") - pl.col("kept").fill_null(0)).cast(pl.Int64).alias("left_out"),
    )
    until_when = min(until, plan.ends) + plan.within_seconds
    unknown = feedback.join(exposures, on=REQUEST, how="anti").filter(
        pl.col(KIND).is_in(kinds) & (time >= begin) & (time < until_when)
    )
    if "tail" in names and earlier.is_empty():
        raise UserError("tail: the log has no answers in the days before the start, which say what is popular")
    if "unlisted" in names and not catalogue:
        raise UserError("unlisted: the plan names no catalogue; give `catalogue`, a text file of one item a line")
    head = pl.Series(dtype=pl.String)
    if "tail" in names:
        counts = earlier.select(pl.col("slate").explode().alias(ITEM)).drop_nulls().group_by(ITEM).len()
        shown_most = counts.sort("len", ITEM, descending=[True, False])[ITEM]
        head = shown_most.head(max(1, round(HEAD * len(counts))))
    listed = pl.Series(list(catalogue), dtype=pl.String)
    users = users.join(_sums(shown, on_answers, names, head, listed, plan.slow_ms), on=USER, how="left")
    covariates = {metric.sum for metric in plan.metrics.values() if metric.cuped}
    before = _sums(earlier, on_answers, covariates, head, listed, plan.slow_ms)
    users = users.join(before.rename({column_of(name): before_of(name) for name in covariates}), on=USER, how="left")
    return Units(
        users=users.with_columns(pl.col(pl.Float64).fill_null(0.0)),
        answers=len(given),
        answers_excluded=len(window) - len(included),
        answers_held_out=len(included) - len(shown),
        answers_misassigned=len(given) - len(given.filter(_as_assigned(plan))),
        answers_outside=int((rows["deal"] == "outside").sum()),
        answers_stopped=int((rows["deal"] == "stopped").sum()),
        requests_failed=len(shown) - len(given),
        feedback_early=of_shown.early,
        feedback_late=of_shown.late,
        feedback_not_shown=len(of_shown.feedback) - len(of_items),
        feedback_repeated=len(of_items) - len(counted),
        feedback_unknown=len(unknown.unique(event)),
        events=events.sort(of_user),
        models=models,
        kinds=_kinds(feedback),
        unseen=_unseen(names, feedback),
    )


def stops_seen(plan: Plan, exposures: pl.DataFrame) -> dict[str, float]:
    """Return when users of each stopped arm first got the control, seconds since 1970."""
    given = exposures.filter((pl.col("experiment") == plan.name) & (pl.col("deal") == "stopped"))
    found: dict[str, float] = {}
    for user, time in given.group_by(USER).agg(pl.col("time").min()).iter_rows():
        arm = assign_by(plan, user)
        if arm is not None:
            found[arm] = min(time, found.get(arm, math.inf))
    return found


def users_before(plan: Plan, exposures: pl.DataFrame, feedback: pl.DataFrame, catalogue: Iterable[str] = ()) -> Earlier:
    """Return `users_of` for the covered `days_before`, with metrics lacking mean or deviation.

    UserError if less than a day is covered, or feedback of a metric is missing.
    """
    instead = "give users_a_day, and mean and deviation of the metrics, and leave --exposures out"
    times = exposures["time"]
    before = times.filter(times < plan.begins)
    if before.is_empty():
        raise UserError(f"the log has no answers before the start on {plan.start}; {instead}")
    end = min(float(times.max()), plan.begins)  # type: ignore[arg-type]
    begin = max(float(times.min()), end - plan.days_before * DAY)  # type: ignore[arg-type]
    if end - begin < DAY:
        span = f"{moment_of(begin)} to {moment_of(end)}"
        raise UserError(
            f"the log covers {(end - begin) / DAY:.2f} of the {plan.days_before} days before the start, {span}, "
            f"and less than one says nothing of a day; {instead}"
        )
    asked = {n: m for n, m in plan.metrics.items() if m.expected and (m.mean is None or m.deviation is None)}
    for kind in _unseen(_summed(asked.values()), feedback):
        known = ", ".join(_kinds(feedback)) or "none"
        raise UserError(f"the log has no feedback of kind {kind!r}; its kinds are {known}")
    part = plan.model_copy(update={"metrics": asked, "guardrails": {}})
    rows = exposures.with_columns(experiment=pl.lit(None, pl.String), deal=pl.lit(None, pl.String))
    until = min(math.nextafter(end, math.inf), plan.begins)  # includes the last answer of the log
    return Earlier(users_of(part, rows, feedback, catalogue, until, begin).users, begin, end)


def _as_assigned(plan: Plan) -> pl.Expr:
    return pl.any_horizontal(
        (pl.col("assigned") == name)
        & pl.when(pl.col("deal").is_null())
        .then(pl.col("arm").is_in([arm.serves, arm.version]))
        .otherwise(pl.col("arm") == name)
        for name, arm in plan.arms.items()
    )


def _summed(metrics: Iterable[PlannedMetric | Guardrail]) -> set[str]:
    return {name for metric in metrics for name in (metric.sum, metric.per) if name is not None}


def _kinds(feedback: pl.DataFrame) -> tuple[str, ...]:
    return tuple(sorted(feedback[KIND].unique()))


def _unseen(names: set[str], feedback: pl.DataFrame) -> tuple[str, ...]:
    asked = {kind_of(name) for name in names} - {None, *_kinds(feedback)}
    return tuple(sorted(kind for kind in asked if kind is not None))


def _sums(
    answers: pl.DataFrame,
    feedback: pl.DataFrame,
    names: Iterable[str],
    head: pl.Series,
    listed: pl.Series,
    slow_ms: float,
) -> pl.DataFrame:
    wanted = sorted(names)
    items = answers.select(REQUEST, USER, pl.col("slate").alias(ITEM)).explode(ITEM).drop_nulls(ITEM)
    found = feedback.join(items.unique([REQUEST, ITEM]), on=[REQUEST, ITEM], how="inner")
    of_items = {
        "impressions": pl.len(),
        "distinct_items": pl.col(ITEM).n_unique(),
        "tail": (~pl.col(ITEM).is_in(head.implode())).sum(),
        "unlisted": (~pl.col(ITEM).is_in(listed.implode())).sum(),
    }
    of_answers = OF_ANSWERS | {SLOW: ((pl.col("latency_ms") > slow_ms) & ~FAILED).sum()}
    counted = [of_answers[name].alias(column_of(name)) for name in wanted if name in of_answers]
    sums = answers.group_by(USER, maintain_order=True).agg(counted)
    parts = [items.group_by(USER).agg(of_items[name].alias(column_of(name)) for name in wanted if name in of_items)]
    for name in (name for name in wanted if name not in of_answers and name not in of_items):
        kind = found.filter(pl.col(KIND) == name.removesuffix(".value"))
        number = pl.col("value").sum() if name.endswith(".value") else pl.len()
        parts.append(kind.group_by(USER).agg(number.alias(column_of(name))))
    for part in parts:
        sums = sums.join(part, on=USER, how="left")
    return sums.select(USER, *(pl.col(column_of(name)).cast(pl.Float64).fill_null(0.0) for name in wanted))
