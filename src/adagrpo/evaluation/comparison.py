r"""Says whether an arm is better than a baseline: user by user, over seeds, and over a family of arms fixed beforehand.

For arm `a`, seed `s` of `S` and user `u` of the `n_s` test cases of that seed, with a metric `m` of each user's list,

    d_su = m(a, s, u) - m(baseline, s, u)                     at the same kind of checkpoint: best, or final
    D_s  = (1/n_s) Σ_u d_su,   D = (1/S) Σ_s D_s
    users     bootstrap over the U users of  e_u = (U/S) Σ_s d_su / n_s,  whose mean is D
    seeds     D ± t_{S-1} s(D_1 .. D_S) / √S
    both      for other users and other seeds together, see `adagrpo.evaluation.crossed`
    family    Holm over the p-values of all family arms and checkpoints, on one metric: those of `both`, and of `users`
              where there is one seed

Sources: Efron 1979, Holm 1979, see `adagrpo.evaluation.statistics`. We depart from tests that take each (seed, user)
for a draw of its own: a user meets every seed with the same history and target. A claim is about other users and other
runs of the training, so `both` decides it; the intervals over either alone say where the doubt comes from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.config import CompareConfig
from adagrpo.data.columns import USER_ID
from adagrpo.evaluation.crossed import CrossedParts, crossed_interval, crossed_parts
from adagrpo.evaluation.statistics import Interval, bootstrap_means, holm, seed_interval
from adagrpo.metrics import RankedLists, lookup, measure_users

ComparisonVerdict = Literal[
    "significantly better",  # after Holm's correction
    "significantly better, margin not kept",
    "significantly worse",
    "significant over users only",
    "not significant after correction",
    "not distinguishable",
    "baseline",
    "not tested",
]
Point = tuple[str, str]  # arm and checkpoint


class Measured(NamedTuple):
    """Metrics of one checkpoint of one arm under one seed."""

    users: pl.DataFrame  # user_id in ascending order, one column a metric; see `per_user`
    test: Mapping[str, float]  # means over the test cases, coverage and the like among them
    validation: Mapping[str, float]


def per_user(users: pl.Series, lists: RankedLists) -> pl.DataFrame:
    """The metrics of each user's lists.

    Args:
        users: (N,) ids.
        lists: of these users, one each.

    Returns:
        user_id in ascending order, and every metric of the table that is one of each user.

    Example:
        >>> lists = RankedLists(np.array([4, 2]), width=5)
        >>> per_user(pl.Series([8, 7]), lists).row(0, named=True)
        {'user_id': 7, 'hr@1': 0.0, 'hr@5': 1.0, 'ndcg@5': 0.6309297535714575}
    """
    columns = [pl.Series(name, values) for name, values in measure_users(lists).items()]
    return pl.DataFrame([users.alias(USER_ID), *columns]).sort(USER_ID)


def compare(
    measured: Mapping[Point, Sequence[Measured]], seeds: Sequence[int], options: CompareConfig
) -> list[dict[str, Any]]:
    """Every arm and checkpoint against the baseline's checkpoint of the same kind (its only one, if it has one).

    Args:
        measured: by arm and checkpoint, one entry a seed, in the order of `seeds`.

    Returns:
        One JSON-able row for each arm and checkpoint, in the order given: `arm`, `checkpoint`, `verdict`, `p_holm`,
        `test` (mean, interval over seeds, and the value of each seed), `validation` (means), `against` (differences
        from the baseline with their intervals) and `margins`. What is unknown is None.

    Raises:
        ValueError: an entry lacks a seed, or the users of two arms are not the same under a seed.
    """
    short = [point for point, entries in measured.items() if len(entries) != len(seeds)]
    if short:
        raise ValueError(f"{short[0]}: {len(measured[short[0]])} entries, expected one for each of seeds {list(seeds)}")
    rows = []
    for (arm, checkpoint), entries in measured.items():
        reference = measured.get((options.baseline, checkpoint)) or measured[options.baseline, "best"]
        names = [name for name in entries[0].users.columns if name != USER_ID]
        against = {} if arm == options.baseline else _against(entries, reference, names, options)
        margins = {n: within_margin(against[n], n, m) for n, m in options.margins.items() if against}
        row: dict[str, Any] = {"arm": arm, "checkpoint": checkpoint, "verdict": "", "p_holm": None}
        row |= {"test": {n: over_seeds([e.test[n] for e in entries], options.level) for n in entries[0].test}}
        row |= {"validation": {n: float(np.mean([e.validation[n] for e in entries])) for n in entries[0].validation}}
        rows.append(row | {"against": against, "margins": margins})
    give_verdicts(rows, options)
    return rows


def compare_pairs(measured: Mapping[Point, Sequence[Measured]], options: CompareConfig) -> list[dict[str, Any]]:
    """The arms of every pair of the plan against each other, at the same kind of checkpoint; as `compare`.

    Returns:
        One JSON-able row for each pair and kind of checkpoint that either has: `arm`, `other`, `checkpoint`, `against`
        (the first less the second, as in a row of `compare`), and `p_holm` of the metric, over these rows alone.

    Raises:
        ValueError: the users of two arms are not the same under a seed.
    """
    rows: list[dict[str, Any]] = []
    for arm, other in options.pairs:
        for checkpoint in ("best", "final"):
            if (arm, checkpoint) in measured or (other, checkpoint) in measured:
                first, second = (measured.get((name, checkpoint)) or measured[name, "best"] for name in (arm, other))
                names = [name for name in first[0].users.columns if name != USER_ID]
                against = _against(first, second, names, options)
                rows.append({"arm": arm, "other": other, "checkpoint": checkpoint, "against": against})
    return corrected_pairs(rows, options)


def corrected_pairs(rows: Sequence[dict[str, Any]], options: CompareConfig) -> list[dict[str, Any]]:
    """The rows of pairs with Holm's p-values of the plan's metric, over these rows alone."""
    corrected = holm([row["against"][options.metric]["p"] for row in rows])
    return [row | {"p_holm": p} for row, p in zip(rows, corrected, strict=True)]


def give_verdicts(rows: Sequence[dict[str, Any]], options: CompareConfig) -> None:
    """Write Holm's p-values into the rows of the family, and a verdict into each; see `compare` for the rows."""
    left_out = ("sft", options.baseline)
    family = {row["arm"] for row in rows}.difference(left_out) if options.family is None else options.family
    tested = [row for row in rows if row["arm"] in family]
    for row, p in zip(tested, holm([row["against"][options.metric]["p"] for row in tested]), strict=True):
        row["p_holm"] = p
    for row in rows:
        row["verdict"] = _verdict(row, options)


def _against(
    arm: Sequence[Measured], baseline: Sequence[Measured], metrics: Sequence[str], options: CompareConfig
) -> dict[str, dict[str, Any]]:
    """By metric, the difference from the baseline, with its intervals over users, over seeds and over both."""
    places = _places(arm, baseline)
    by_seed = {metric: _differences(arm, baseline, metric) for metric in metrics}
    values = np.stack([_user_values(differences, places) for differences in by_seed.values()])
    intervals = bootstrap_means(values, resamples=options.resamples, level=options.level)
    margins = {}
    for (metric, differences), users in zip(by_seed.items(), intervals, strict=True):
        base = float(np.mean([entry.users[metric].mean() for entry in baseline]))
        means = [float(difference.mean()) for difference in differences]
        margins[metric] = {
            "difference": users.mean,
            "relative": users.mean / base if base else None,
            "users": [users.low, users.high],
            "p": users.p_value,
            "seeds": _ends(seed_interval(means, level=options.level)),
            "by_seed": means,
        }
        if len(means) > 1 and all(len(place) > 1 for place in places):
            parts = crossed_parts(differences, places)
            margins[metric] |= over_both(means, parts.users, parts.rest, options.level)
    return margins


def over_both(by_seed: Sequence[float], users: float, rest: float, level: float) -> dict[str, Any]:
    """The interval over users and seeds together, its p-value, and the variances that it was made of, as in `compare`.

    Of the mean differences by seed `users` is the variance over users, and `rest` the part of it that is of each user
    under each seed, see `adagrpo.evaluation.crossed`.
    """
    seeds = float(np.var(by_seed, ddof=1)) / len(by_seed)
    parts = CrossedParts(float(np.mean(by_seed)), seeds, users, rest, len(by_seed) - 1)
    interval = crossed_interval(parts, level=level)
    both = [interval.low, interval.high]
    return {"both": both, "p": interval.p_value, "variance": {"users": users, "rest": rest}}


def reported(against: Mapping[str, Any]) -> Sequence[float]:
    """The interval that a difference is reported with: over users and seeds, and over users where that is not known."""
    ends: Sequence[float] = against.get("both") or against["users"]
    return ends


def _places(arm: Sequence[Measured], baseline: Sequence[Measured]) -> list[NDArray[np.int64]]:
    """(n_s,) of each seed: which user of all of them each test case is."""
    for ours, theirs in zip(arm, baseline, strict=True):
        if not ours.users[USER_ID].equals(theirs.users[USER_ID]):
            raise ValueError("the arm and the baseline were not measured on the same users")
    ranks = pl.concat([entry.users[USER_ID] for entry in arm]).rank("dense").to_numpy().astype(np.int64) - 1
    return np.split(ranks, np.cumsum([len(entry.users) for entry in arm])[:-1])


def _differences(arm: Sequence[Measured], baseline: Sequence[Measured], metric: str) -> list[NDArray[np.float64]]:
    """(n_s,) of each seed: what each user gains."""
    pairs = zip(arm, baseline, strict=True)
    return [ours.users[metric].to_numpy() - theirs.users[metric].to_numpy() for ours, theirs in pairs]


def _user_values(
    differences: Sequence[NDArray[np.float64]], places: Sequence[NDArray[np.int64]]
) -> NDArray[np.float64]:
    """(U,) one number a user, whose mean is the mean over the seeds of their means."""
    weighted = [difference / (len(differences) * len(difference)) for difference in differences]
    sums = np.bincount(np.concatenate(places), weights=np.concatenate(weighted))
    return np.asarray(sums * len(sums), dtype=np.float64)


def within_margin(against: Mapping[str, Any], metric: str, margin: float) -> dict[str, Any]:
    """Return how much worse than the baseline the interval allows the arm to be, and whether that is in bounds."""
    low, high = reported(against)
    worst = high if lookup(metric).better == "lower" else -low
    return {"margin": margin, "worst": worst, "kept": worst <= margin}


def _verdict(row: Mapping[str, Any], options: CompareConfig) -> ComparisonVerdict:
    if row["arm"] == options.baseline:
        return "baseline"
    if row["p_holm"] is None:
        return "not tested"
    primary = row["against"][options.metric]
    if row["p_holm"] > 1 - options.level:
        if not _holds_zero(reported(primary)):
            return "not significant after correction"
        return "not distinguishable" if _holds_zero(primary["users"]) else "significant over users only"
    # a comparison of a time before `both` has a p-value of users alone
    if _holds_zero(primary.get("both") or primary["seeds"] or primary["users"]):
        return "significant over users only"
    if (primary["difference"] < 0) != (lookup(options.metric).better == "lower"):
        return "significantly worse"
    kept = all(margin["kept"] for margin in row["margins"].values())
    return "significantly better" if kept else "significantly better, margin not kept"


def _holds_zero(ends: Sequence[float]) -> bool:
    return ends[0] <= 0 <= ends[1]


def over_seeds(values: Sequence[float], level: float) -> dict[str, Any]:
    """The mean of one number a seed, with its interval, as a row of `compare` has it."""
    interval = seed_interval(values, level=level)
    return {"mean": interval.mean, "interval": _ends(interval), "by_seed": list(values)}


def _ends(interval: Interval) -> list[float] | None:
    """Both ends; None for a single seed, which has no interval."""
    return None if math.isnan(interval.low) else [interval.low, interval.high]
