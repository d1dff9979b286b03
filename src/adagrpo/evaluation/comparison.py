r"""Says whether an arm is better than a baseline: user by user, over seeds, and over a family of arms fixed beforehand.

For arm `a`, seed `s` of `S` and user `u` of the `n_s` test cases of that seed, with a metric `m` of each user's list,

    d_su = m(a, s, u) - m(baseline, s, u)                     at the same kind of checkpoint: best, or final
    D_s  = (1/n_s) Σ_u d_su,   D = (1/S) Σ_s D_s
    users     bootstrap over the U users of  e_u = (U/S) Σ_s d_su / n_s,  whose mean is D
    seeds     D ± t_{S-1} s(D_1 .. D_S) / √S
    family    Holm over the users' p-values of all family arms and checkpoints, on one metric

Sources: Efron 1979, Holm 1979, see `adagrpo.evaluation.statistics`. We depart from tests that take each (seed, user)
for a draw of its own: a user meets every seed with the same history and target, so users are resampled with all their
seeds. And a claim needs both: the users' adjusted p-value, and an interval over the seeds that excludes zero; the first
says that other users would agree, the second that another run of the training would.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.config import CompareConfig
from adagrpo.data.columns import USER_ID
from adagrpo.evaluation.statistics import Interval, bootstrap_means, holm, seed_interval
from adagrpo.metrics import RankedLists, lookup, measure_users

__all__ = ["Measured", "Verdict", "compare", "per_user", "pool"]

Verdict = Literal[
    "better",
    "better, margin not kept",
    "worse",
    "not settled over seeds",
    "no difference shown",
    "baseline",
    "outside the family",
]
Point = tuple[str, str]  # arm and checkpoint


class Measured(NamedTuple):
    """What one checkpoint of one arm did under one seed."""

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
        seeds: `S` of them.
        options: baseline, family, metric, level, margins.

    Returns:
        One JSON-able row for each arm and checkpoint, in the order given: `arm`, `checkpoint`, `verdict`, `p_holm`,
        `test` (mean, interval over seeds, and the value of each seed), `validation` (means), `against` (differences
        from the baseline with both intervals) and `margins`. What is unknown is None.

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
        margins = {n: _margin(against[n], n, m) for n, m in options.margins.items() if against}
        row: dict[str, Any] = {"arm": arm, "checkpoint": checkpoint, "verdict": "", "p_holm": None}
        row |= {"test": {n: _over_seeds([e.test[n] for e in entries], options.level) for n in entries[0].test}}
        row |= {"validation": {n: float(np.mean([e.validation[n] for e in entries])) for n in entries[0].validation}}
        rows.append(row | {"against": against, "margins": margins})
    _judge(rows, options)
    return rows


def pool(contents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several comparisons of the same arms under different seeds as one, from their files alone.

    Means and intervals over seeds are those that one comparison of all seeds would have. Its interval over users is not
    in the files, as nobody knows how a user's differences under one file's seeds go with those under another's. With
    the share w_i of the seeds, and half-widths h_i,

        sd(Σ w_i D_i) <= Σ w_i sd(D_i)     so     Σ w_i h_i is at least the half-width of the mean over all seeds

    and each end is the mean of the ends: the interval is too wide, if anything. So is the p-value too large, which is
    that of a normal variable with this half-width.

    Args:
        contents: of `comparison.json`, in the order of their seeds.

    Returns:
        Such a content, with `name`, `seeds`, `users` (the most of any), `plan` and `rows`, for the arms that all have.

    Raises:
        ValueError: two have a seed in common, or differ in plan or name.
    """
    first, seeds = contents[0], [seed for content in contents for seed in content["seeds"]]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"the seeds {seeds} are not all different")
    for key in ("name", "plan"):
        if any(content[key] != first[key] for content in contents):
            raise ValueError(f"their {key}s differ")
    options = CompareConfig.model_validate(first["plan"])
    shares = [len(content["seeds"]) / len(seeds) for content in contents]
    tables = [{(row["arm"], row["checkpoint"]): row for row in content["rows"]} for content in contents]
    points = [point for point in tables[0] if all(point in table for table in tables)]
    rows = []
    for arm, checkpoint in points:
        parts = [table[arm, checkpoint] for table in tables]
        bases = [table.get((options.baseline, checkpoint), table[options.baseline, "best"]) for table in tables]
        test = {
            name: _over_seeds([value for part in parts for value in part["test"][name]["by_seed"]], options.level)
            for name in _common(parts, "test")
        }
        validation = {
            name: sum(w * part["validation"][name] for w, part in zip(shares, parts, strict=True))
            for name in _common(parts, "validation")
        }
        against = {
            name: _pooled_difference(
                [part["against"][name] for part in parts],
                [base["test"][name]["mean"] for base in bases],
                shares,
                options,
            )
            for name in _common(parts, "against")
        }
        margins = {n: _margin(against[n], n, m) for n, m in options.margins.items() if against}
        row = {"arm": arm, "checkpoint": checkpoint, "verdict": "", "p_holm": None, "test": test}
        rows.append(row | {"validation": validation, "against": against, "margins": margins})
    _judge(rows, options)
    users = max(content["users"] for content in contents)
    return {"name": first["name"], "seeds": seeds, "users": users, "plan": first["plan"], "rows": rows}


def _common(parts: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    return [name for name in parts[0][key] if all(name in part[key] for part in parts)]


def _pooled_difference(
    parts: Sequence[Mapping[str, Any]], bases: Sequence[float], shares: Sequence[float], options: CompareConfig
) -> dict[str, Any]:
    by_seed = [value for part in parts for value in part["by_seed"]]
    interval = seed_interval(by_seed, level=options.level)
    low, high = (float(np.dot(shares, [part["users"][end] for part in parts])) for end in (0, 1))
    base = float(np.dot(shares, bases))
    error = (high - low) / 2 / NormalDist().inv_cdf((1 + options.level) / 2)
    p = 2 * NormalDist().cdf(-abs(interval.mean) / error) if error else float(interval.mean == 0)
    return {
        "difference": interval.mean,
        "relative": interval.mean / base if base else None,
        "users": [low, high],
        "p": p,
        "seeds": _ends(interval),
        "by_seed": by_seed,
    }


def _judge(rows: Sequence[dict[str, Any]], options: CompareConfig) -> None:
    """Write Holm's p-values into the rows of the family, and a verdict into each."""
    tested = [row for row in rows if _in_family(row["arm"], options)]
    for row, p in zip(tested, holm([row["against"][options.metric]["p"] for row in tested]), strict=True):
        row["p_holm"] = p
    for row in rows:
        row["verdict"] = _verdict(row, options)


def _in_family(arm: str, options: CompareConfig) -> bool:
    return arm not in ("sft", options.baseline) if options.family is None else arm in options.family


def _against(
    arm: Sequence[Measured], baseline: Sequence[Measured], metrics: Sequence[str], options: CompareConfig
) -> dict[str, dict[str, Any]]:
    """By metric, the difference from the baseline, with its interval over users and that over seeds."""
    differences = [_differences(arm, baseline, metric) for metric in metrics]
    values = np.stack([values for values, _ in differences])
    intervals = bootstrap_means(values, resamples=options.resamples, level=options.level)
    found = {}
    for metric, users, (_, by_seed) in zip(metrics, intervals, differences, strict=True):
        base = float(np.mean([entry.users[metric].mean() for entry in baseline]))
        found[metric] = {
            "difference": users.mean,
            "relative": users.mean / base if base else None,
            "users": [users.low, users.high],
            "p": users.p_value,
            "seeds": _ends(seed_interval(by_seed, level=options.level)),
            "by_seed": by_seed,
        }
    return found


def _differences(
    arm: Sequence[Measured], baseline: Sequence[Measured], metric: str
) -> tuple[NDArray[np.float64], list[float]]:
    """(U,) one number a user, whose mean is the mean over the seeds; and the mean difference of each seed."""
    users, weighted, by_seed = [], [], []
    for ours, theirs in zip(arm, baseline, strict=True):
        if not ours.users[USER_ID].equals(theirs.users[USER_ID]):
            raise ValueError("the arm and the baseline were not measured on the same users")
        difference = ours.users[metric].to_numpy() - theirs.users[metric].to_numpy()
        by_seed.append(float(difference.mean()))
        users.append(ours.users[USER_ID])
        weighted.append(difference / (len(arm) * len(difference)))
    places = pl.concat(users).rank("dense").to_numpy().astype(np.int64) - 1
    sums = np.bincount(places, weights=np.concatenate(weighted))
    return np.asarray(sums * len(sums), dtype=np.float64), by_seed


def _margin(against: Mapping[str, Any], metric: str, margin: float) -> dict[str, Any]:
    """How much worse than the baseline the users' interval allows the arm to be, and whether that is within bounds."""
    low, high = against["users"]
    worst = high if lookup(metric).better == "lower" else -low
    return {"margin": margin, "worst": worst, "kept": worst <= margin}


def _verdict(row: Mapping[str, Any], options: CompareConfig) -> Verdict:
    if row["arm"] == options.baseline:
        return "baseline"
    if row["p_holm"] is None:
        return "outside the family"
    found = row["against"][options.metric]
    if row["p_holm"] > 1 - options.level:
        return "no difference shown"
    low, high = found["seeds"] or found["users"]
    if low <= 0 <= high:
        return "not settled over seeds"
    if (found["difference"] < 0) != (lookup(options.metric).better == "lower"):
        return "worse"
    return "better" if all(margin["kept"] for margin in row["margins"].values()) else "better, margin not kept"


def _over_seeds(values: Sequence[float], level: float) -> dict[str, Any]:
    interval = seed_interval(values, level=level)
    return {"mean": interval.mean, "interval": _ends(interval), "by_seed": list(values)}


def _ends(interval: Interval) -> list[float] | None:
    """Both ends; None for a single seed, which has no interval."""
    return None if math.isnan(interval.low) else [interval.low, interval.high]
