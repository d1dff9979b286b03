"""`adagrpo decide`: choose which list to serve, by a fixed rule over the lists within the time budget.

1. Compare NDCG@10 on validation cases (fused lists cross-fitted), weighted by `RunData.case_weights`.
2. With simultaneous 95 % intervals (`all_pairs`), take the simplest contender (`contenders`) whose loss against every
   other is below `decide.margin` of the best NDCG@10; else, of those that are not significantly below the best, the
   best fused one; else the best.
3. With random exposures (`data.random`), exclude lists that order their clicks worse than the starting policy (and
   simpler ones that do so worse than the best: the interval of the AUC difference is below zero), and lists that
   another one within the budget is significantly above whose first ten are clicked no less where they were shown.
   Impressions between validation targets and test (`data.prepared.SHOWN_LATER`) serve alike if no list tells what is
   shown to whom (`evaluation.exposure_dependence`). Else the list that orders their clicks best is only named
   (`research/exposed_feed`).

Leaking rewards (`adagrpo.diagnosis.leaks`) are dropped; if all leak, their lists are measured but never chosen. Test
cases only fill the table.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.config.reward import RewardOptions, WeightedOptions
from adagrpo.data.exposures import RANDOM
from adagrpo.data.prepared import SHOWN_LATER
from adagrpo.diagnosis.verdict import leak_reason
from adagrpo.errors import NotFinite, ServiceError, UserError
from adagrpo.evaluation.predictions import sample_cases
from adagrpo.lists import Recommender
from adagrpo.lists.names import (
    CONTROL,
    FUSE,
    FUSE_WITHOUT_REWARD,
    RERANK,
    REWARD,
    START,
    ListName,
    parse_list,
    reward_number,
)
from adagrpo.lists.table import SOURCES
from adagrpo.metrics import hit_rate, ndcg
from adagrpo.pipeline.decision_plan import plan_experiment
from adagrpo.pipeline.directory import RunDirectory, kept, made_from, remake_command, weights_of
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.list_makers import ListMaker, contenders, reward_title
from adagrpo.pipeline.random_judge import TELLING, RandomOrder, clicks_of_lists, independence, random_order
from adagrpo.pipeline.stage import Declaration
from adagrpo.pipeline.stages.control import doubts_of_control
from adagrpo.pipeline.stages.diagnose import suspects
from adagrpo.pipeline.stages.fuse import POWER, VALIDATION, WEIGHT, chooses_power, read_ranks, validation_cases
from adagrpo.pipeline.staleness import parts_of
from adagrpo.pipeline.versions import catalog_versions
from adagrpo.statistics import Interval, all_pairs

TIMED, WARM_UP = 8, 3  # histories per list: timed, and run before timing
ROUNDS = 10  # lists take turns, since load on the machine rarely affects all rounds
TOP = 10
TRIED, MOST_SECONDS = 4, 600.0  # lists timed for a reward alone, and the limit for all its lists
FEW_CASES = 2000  # a convention: with fewer, a doubt is reported
CHECK = "Check that all that it was fitted on or counts ends where training ends (prepare/training_logs.parquet)"

Values = NDArray[np.float64]


class Choice(NamedTuple):
    """A contender and the reason for choosing it."""

    chosen: str
    best: str
    why: str


def leave_leaks_out(run: RunDirectory) -> list[str]:
    """Drop leaking rewards from a run's sum, and return a message for each; none if all leak."""
    options = run.config.reward
    if not isinstance(options, WeightedOptions) or len(options.parts) < 2:
        return []
    try:
        leaks = _leaks(Models(RunData(run)))
    except NotFinite:  # reported by the first look at the rewards
        return []
    kept = [index for index in range(len(options.parts)) if f"{REWARD}-{index + 1}" not in leaks]
    if not leaks or not kept:
        return []
    weights = None if options.weights is None else tuple(options.weights[index] for index in kept)
    rest: RewardOptions = WeightedOptions(members=tuple(options.parts[index] for index in kept), weights=weights)
    if weights is None and len(kept) == 1:  # a single reward needs no sum
        rest = rest.parts[0]
    run.config = run.config.model_copy(update={"reward": rest})
    return [
        f"{reward_title(options, name)} has probably seen the held-out items and was left out: {reason}. {CHECK}"
        for name, reason in leaks.items()
    ]


def _leaks(models: Models) -> dict[str, str]:
    return {name: why for name, signs in suspects(models).items() if (why := leak_reason(signs)) is not None}


def not_measured(run: RunDirectory, name: str, stage: Declaration) -> str | None:
    """Return why a list is left out; None if it is measured."""
    kind, _, called = name.rpartition("/")
    if kind != "evaluate":
        return None
    data, source = RunData(run), SOURCES.get(called)
    if source is not None and source.most_items is not None:
        most = f"it is made for at most {source.most_items:,} items, and there are {data.num_items:,}"
        return most if data.num_items > source.most_items else None
    if reward_number(parse_list(called).order) is None or made_from(run, stage).equals(kept(run, name)):
        return None
    cases, count = validation_cases(data), len(data.measured_cases("test"))
    queries = data.queries_of(cases, np.arange(min(TRIED, len(cases))))
    try:
        served = ListMaker(Models(data)).recommender(parse_list(called), run.path(*weights_of(START)))
        served.recommend(queries[:1])
        started = time.perf_counter()
        served.recommend(queries)
    except (UserError, ServiceError, NotFinite) as error:
        return f"it gave no scores of all {data.num_items:,} items ({error})"
    seconds = (time.perf_counter() - started) / len(queries)
    whole = seconds * (len(cases) + count)
    if whole <= MOST_SECONDS:
        return None
    return (
        f"it takes {seconds:.2g} s to score all {data.num_items:,} items for one list, so {whole / 60:,.0f} minutes for"
        f" {len(cases) + count:,} cases"
    )


def choose(
    values: Mapping[str, Values],
    pairs: Mapping[tuple[str, str], Interval],
    milliseconds: Mapping[str, float],
    budget: float | None,
    judged: RandomOrder | None = None,
    *,
    margin: float = 0.01,
) -> Choice:
    """Apply the module's rule.

    Args:
        values: (N,) NDCG@10 per validation case, by list, simplest first; `pairs` are their differences.
        budget: milliseconds per list; None is unlimited.
        margin: share of the best NDCG@10 that a simpler list may lose.

    Raises:
        UserError: no list is within the budget.

    Example:
        >>> values = {"sft": np.array([0.0, 0.4] * 50), "fuse": np.array([0.5, 0.6] * 50)}
        >>> taken = {"sft": 4.0, "fuse": 9.0}
        >>> [choose(values, all_pairs(values), taken, budget).chosen for budget in (None, 5.0)]
        ['fuse', 'sft']
    """
    quick = [name for name in values if budget is None or milliseconds[name] <= budget]
    if not quick:
        name = min(values, key=lambda name: milliseconds[name])
        raise UserError(
            f"--budget-ms {budget:g}: no list that may be taken takes so little; the quickest, {name}, takes"
            f" {milliseconds[name]:.2g} ms"
        )
    means = {name: float(values[name].mean()) for name in quick}
    best = max(quick, key=lambda name: means[name])
    worse = [] if judged is None else judged.worse(quick, best)
    lost = {name: max((pairs[other, name].high for other in quick if other != name), default=0.0) for name in quick}
    near = [name for name in quick if name not in worse and lost[name] <= margin * means[best]]
    of = "" if len(quick) == len(values) else f" of the lists that take at most {budget:g} ms"
    if near and near[0] != best:
        lost_most = f"{max(lost[near[0]], 0.0):.4f} NDCG@{TOP} on validation against any list{of}"
        why = f"it loses at most {lost_most}, within {margin:.2g} of {best}, the best, and nothing simpler does"
        return Choice(near[0], best, why)
    highest = f"the highest NDCG@{TOP} on validation{of}"
    above = [name for name in quick if name != best and pairs[best, name].low <= 0]
    fused = [name for name in above if name not in worse and parse_list(name).order in (FUSE, FUSE_WITHOUT_REWARD)]
    if fused and parse_list(best).order not in (FUSE, FUSE_WITHOUT_REWARD):
        taken = max(fused, key=lambda name: means[name])
        why = (
            f"it combines what the others are made of, and is not significantly below {best}, which has {highest}"
            f" (loses at most {pairs[best, taken].high:.4f})"
        )
        return Choice(taken, best, why)
    if above:
        losses = ", ".join(f"{name} (loses at most {pairs[best, name].high:.4f})" for name in above)
        return Choice(best, best, f"{highest}; not significantly below it: {losses}")
    return Choice(best, best, f"{highest}, significantly above every other" if len(quick) > 1 else highest)


def decision(
    run: RunDirectory,
    arms: Sequence[str],
    budget: float | None,
    control: str,
    left_out: Mapping[str, str],
    leaking: Sequence[str],
) -> dict[str, Any]:
    """Return all lists' figures, the choice and its uncertainty; `budget` is in milliseconds per list."""
    data = RunData(run)
    maker = ListMaker(Models(data))
    names = [name for name in contenders(run.config, arms) if name not in left_out]
    ranks = {name: read_ranks(_ranks_file(run, name), name) for name in names}
    as_logged = {name: ndcg(found, TOP, sizes) for name, (found, sizes) in ranks.items()}
    weights = pl.read_parquet(_ranks_file(run, START), columns=[WEIGHT])[WEIGHT].to_numpy()
    values = {name: weights * found for name, found in as_logged.items()}
    lists = dict(maker.recommenders(names))
    times = _milliseconds(lists, data)
    taken = {name: wall for name, (wall, _) in times.items()}
    leaks = _leaks(maker.models)
    taught = {arm.name for arm in run.config.train.arms if leaks and arm.learns_from_reward}
    trusted: dict[str, Values] = {}
    for name in names:
        called = parse_list(name)
        alone = reward_number(called.order) is not None
        asks = called.order in leaks if alone else bool(leaks) and maker.asks_reward(called)
        if name != CONTROL and not asks and called.policy not in taught:  # what users get today is not what is better
            trusted[name] = values[name]
    random = random_order(data, lists.items())
    later = None if random is not None else random_order(data, lists.items(), SHOWN_LATER)
    told = None if later is None else independence(data, [(one, lists[one]) for one in TELLING if one in lists])
    judged = later if told is not None and told.found else random
    judge = RANDOM if random is not None else SHOWN_LATER
    clicks = {} if judged is None else clicks_of_lists(data, lists.items(), judge)
    tuned = run.content(FUSE, START, POWER) if chooses_power(data) else None
    harmful = [] if judged is None else judged.worse([name for name in trusted if name != START])
    able = [name for name in trusted if name not in harmful and (budget is None or taken[name] <= budget)]
    outdone = {} if judged is None else judged.outdone(able, clicks)
    allowed = {name: found for name, found in trusted.items() if name not in (*harmful, *outdone)}
    if len(weights) < 2:
        raise UserError(
            "one validation case compares no lists: decide needs at least two users with three interactions"
        )
    pairs = all_pairs(values)
    choice = choose(allowed, pairs, taken, budget, judged, margin=run.config.decide.margin)
    quick = {name: found for name, found in allowed.items() if budget is None or taken[name] <= budget}
    if any(values[name].mean() > values[choice.best].mean() for name in names if name not in allowed):
        choice = choice._replace(why=f"of the lists that may be taken, {choice.why}")
    shown = [f"{metric}@{TOP}" for metric in ("hr", "ndcg", "recall", "coverage", "tail_share", "hallucination")]
    rows: list[dict[str, Any]] = []
    for name in names:
        called, against = parse_list(name), pairs[name, START]
        trained = called.policy not in (None, START) and called.order == "policy"
        test = run.content("evaluate", name, *(["best"] if trained else []), "metrics.json")["test"]
        rows.append(
            {
                "list": name,
                "validation": {
                    f"hr@{TOP}": float(hit_rate(ranks[name][0], TOP).mean()),
                    f"ndcg@{TOP}": values[name].mean(),
                    f"ndcg@{TOP}_as_logged": as_logged[name].mean(),
                },
                f"ndcg@{TOP} against {START}": [against.mean, against.low, against.high],
                "test": {key: one for key, one in test.items() if key in shown or key.startswith("true_utility")},
                "milliseconds": round(taken[name], 2),
                "processor_milliseconds": round(times[name][1], 2),
                "needs": maker.needs(called),
            }
        )
        for judge, of_users in (("random", random), ("shown_later", later)):
            if of_users is not None:
                mean, low, high = of_users.against(name)[:3]
                rows[-1][judge] = {"auc": float(of_users.auc[name].mean()), f"against {START}": [mean, low, high]}
        if name in clicks:
            rows[-1]["clicks_of_list"] = clicks[name]
    tested = {row["list"]: row["test"][f"hr@{TOP}"] for row in rows}
    of_reward = pairs.get((FUSE, FUSE_WITHOUT_REWARD))
    return {
        "chosen": choice.chosen,
        "control": control,
        "why": choice.why,
        "best": choice.best,
        "warning": _below(values, pairs),
        "training": _worth_of_training(trusted, pairs, arms, choice.chosen),
        "against_control": None if choice.chosen == control else list(pairs[choice.chosen, control][:3]),
        "reward_in_fusion": None if of_reward is None else list(of_reward[:3]),
        "doubts": [
            *leaking,
            *doubts_of_control(data),
            *_doubts(data, quick, as_logged, choice, leaks),
            *_doubts_of_judges(data, random, later, judged, harmful, outdone, [*quick], choice.chosen),
            *(f"{name} was not measured: {why}" for name, why in left_out.items()),
            *_doubts_of_catalogue(run),
        ],
        "serve": f"adagrpo serve --run {shlex.quote(str(run.called))} --arm {choice.chosen}",
        "experiment": plan_experiment(run, choice.chosen, control, tested),
        "budget_ms": budget,
        "cases": len(values[START]),
        "exposure_weighted": bool(data.shown_files) and (data.exposure_power if tuned is None else tuned["power"]) > 0,
        "exposure_power": tuned,
        "random_users": 0 if random is None else len(random.auc[START]),
        "shown_later_users": 0 if later is None else len(later.auc[START]),
        "shown_depends_on_user": None
        if told is None
        else {"found": not told.found, "told": {name: list(one[:3]) for name, one in told.told.items()}},
        "contenders": rows,
    }


def _doubts_of_judges(
    data: RunData,
    random: RandomOrder | None,
    later: RandomOrder | None,
    judged: RandomOrder | None,  # which of both excluded lists
    harmful: Sequence[str],
    outdone: Mapping[str, str],
    names: Sequence[str],
    chosen: str,
) -> list[str]:
    doubts = []
    if random is None and data.config.data.random is not None:
        doubts += ["what was shown at random judged no list: no user with a history clicked some of it and left some"]
    if judged is not None and harmful:
        lost = ", ".join(f"{name} by {-100 * judged.against(name).mean:.1f}" for name in harmful)
        shown = "at random to" if random is not None else "after validation to"
        doubts += [
            f"on what was shown {shown} {len(judged.auc[START]):,} users, these order clicks worse than {START}, in"
            f" points of AUC, and were not taken: {lost}"
        ]
    if judged is not None and outdone:
        lost = ", ".join(f"{name} by {-100 * judged.against(name, one).mean:.1f}" for name, one in outdone.items())
        doubts += [
            "of what users were shown, these order clicks significantly worse than"
            f" {', '.join(dict.fromkeys(outdone.values()))}, whose first ten are clicked no less, and were not taken,"
            f" in points of AUC: {lost}"
        ]
    if later is None or judged is later:
        return doubts
    first = max(names, key=lambda name: float(later.auc[name].mean()))
    if chosen in later.worse([name for name in names if name != first], first):
        gained = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * value for value in later.against(first, chosen)[:3]))
        doubts += [
            f"{first} orders the clicks on what {len(later.auc[START]):,} users were shown after their validation cases"
            f" better than {chosen}, by {gained} points of AUC: if you show much that is not liked, hits choose what is"
            " shown; an experiment between the two says which one users prefer"
        ]
    return doubts


def _doubts_of_catalogue(run: RunDirectory) -> list[str]:
    latest = catalog_versions(run)[-1]
    if not latest.number or parts_of(run, measuring=True)[latest.stage].usable:
        return []
    return [
        f"version {latest.number} of the catalogue was made of what has been made again since and cannot be served:"
        f" repeat {remake_command(run, latest.stage)}"
    ]


def _ranks_file(run: RunDirectory, name: str) -> Path:
    called = parse_list(name)
    measured = called.policy is None or called.order == RERANK
    return run.checked(*(("evaluate", name) if measured else (FUSE, called.policy or START)), VALIDATION)


def _milliseconds(lists: Mapping[str, Recommender], data: RunData) -> dict[str, tuple[float, float]]:
    """Wall and processor time of single requests: median over histories of the minimum over rounds."""
    cases = sample_cases(data.cases("validation"), TIMED + WARM_UP, data.config.seed)
    queries = data.queries_of(cases, np.arange(len(cases)))
    for served in lists.values():
        for query in queries[:WARM_UP]:
            served.recommend([query])
    timed, turns = queries[WARM_UP:] or queries, [*lists.values()] * ROUNDS
    taken = np.empty((len(turns), len(timed), 2))
    for turn, served in enumerate(turns):
        for case, query in enumerate(timed):
            started, worked = time.perf_counter(), time.process_time()
            served.recommend([query])
            taken[turn, case] = time.perf_counter() - started, time.process_time() - worked
    least = taken.reshape(ROUNDS, len(lists), len(timed), 2).min(axis=0)
    found = 1000 * np.median(least, axis=1)
    return {name: (wall, processor) for name, (wall, processor) in zip(lists, found.tolist(), strict=True)}


def _below(values: Mapping[str, Values], pairs: Mapping[tuple[str, str], Interval]) -> str | None:
    for source in ("item_knn", "popularity"):
        lost = pairs[source, START]
        if lost.mean > 0:
            learned = ": it has learned little from these logs" if lost.low > 0 else ""
            return (
                f"the policy alone ({values[START].mean():.4f}) is below {source} ({values[source].mean():.4f}) in"
                f" NDCG@{TOP} on validation, by {_of_interval(lost)}{learned}"
            )
    return None


def _of_interval(found: Interval) -> str:
    return f"{found.mean:.4f} [{found.low:+.4f}, {found.high:+.4f}]"


def _worth_of_training(
    values: Mapping[str, Values], pairs: Mapping[tuple[str, str], Interval], arms: Sequence[str], chosen: str
) -> str | None:
    fused = [name for arm in arms if (name := str(ListName(arm, FUSE))) in values]
    if not fused or FUSE not in values:
        return None
    best = max(fused, key=lambda name: float(values[name].mean()))
    gained = pairs[best, FUSE]
    verdict = "gains" if gained.low > 0 else "loses" if gained.high < 0 else "adds nothing that these cases can show"
    return (
        f"training {verdict} once the list is fused: {best} has {gained.mean:+.4f} [{gained.low:+.4f},"
        f" {gained.high:+.4f}] NDCG@{TOP} against {FUSE} on validation, the best of {len(fused)} trained"
        + (f"; {chosen} is chosen all the same" if chosen in fused and gained.low <= 0 else "")
    )


def _doubts(
    data: RunData,
    values: Mapping[str, Values],
    as_logged: Mapping[str, Values],
    choice: Choice,
    leaks: Mapping[str, str],
) -> list[str]:
    doubts = [
        f"{reward_title(data.config.reward, name)} has probably seen the held-out items, so no list that asks it, or"
        f" whose policy was trained with it, was chosen: {reason}. {CHECK}"
        for name, reason in leaks.items()
    ]
    count = len(values[choice.best])
    if count < FEW_CASES:
        doubts.append(f"{count:,} validation cases are few: small differences between contenders are not seen")
    if not data.shown_files:
        doubts.append(
            "the logs do not say what was shown, so what was shown often looks better than it is in every row"
        )
    ahead = max(values, key=lambda name: float(as_logged[name].mean()))
    if ahead != choice.best:
        more = all_pairs({name: as_logged[name] for name in values})[ahead, choice.best]
        if more.low > 0:
            doubts.append(f"unweighted, {ahead} has {_of_interval(more)} more NDCG@{TOP} than {choice.best}")
    return doubts
