"""Compare arms with a baseline, user by user, over seeds, and over a family of arms fixed in advance.

For arm `a`, seed `s` of `S` and user `u` of its `n_s` test cases, with a per-user metric `m`,

    d_su = m(a, s, u) - m(baseline, s, u)                     at the same kind of checkpoint: best, or final
    D_s  = (1/n_s) Σ_u d_su,   D = (1/S) Σ_s D_s
    users     bootstrap over the U users of  e_u = (U/S) Σ_s d_su / n_s,  whose mean is D
    seeds     D ± t_{S-1} s(D_1 .. D_S) / √S
    both      over users and seeds, see `adagrpo.statistics`; decides the verdict
    family    Holm over all family arms and checkpoints on one metric, with p of `both`, or of `users` for one seed

Sources: Efron 1979, Holm 1979.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl

from adagrpo.config import CompareConfig
from adagrpo.data.columns import USER_ID
from adagrpo.metrics import RankedLists, ReportPart, lookup, measure_users, metric_names
from adagrpo.objective import GATES
from adagrpo.statistics import (
    CrossedParts,
    Interval,
    bootstrap_means,
    crossed_interval,
    crossed_parts,
    holm,
    seed_interval,
)

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
    """Metrics of an arm's checkpoint under one seed."""

    users: pl.DataFrame  # user_id in ascending order, one column a metric; see `per_user`
    test: Mapping[str, float]  # means over the test cases, coverage and the like among them
    validation: Mapping[str, float]


def per_user(users: pl.Series, lists: RankedLists) -> pl.DataFrame:
    """Tabulate per-user metrics by ascending user_id; `users` are (N,) ids."""
    columns = [pl.Series(name, values) for name, values in measure_users(lists).items()]
    return pl.DataFrame([users.alias(USER_ID), *columns]).sort(USER_ID)


def compare(
    measured: Mapping[Point, Sequence[Measured]], seeds: Sequence[int], options: CompareConfig
) -> list[dict[str, Any]]:
    """Compare arms and checkpoints with the baseline's of the same kind (or only one), in seed order.

    One JSON-able row each: `arm`, `checkpoint`, `verdict`, `p_holm`, `test`, `validation`, `against` (differences from
    the baseline) and `margins`; None if unknown.
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
    """Compare the plan's pairs of arms, first minus second: a row per pair and kind of checkpoint."""
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
    """Add Holm's p-values on the plan's metric to rows of pairs."""
    corrected = holm([row["against"][options.metric]["p"] for row in rows])
    return [row | {"p_holm": p} for row, p in zip(rows, corrected, strict=True)]


def give_verdicts(rows: Sequence[dict[str, Any]], options: CompareConfig) -> None:
    """Set Holm's p-values in rows of the family, and a verdict in every row."""
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
    for ours, theirs in zip(arm, baseline, strict=True):
        if not ours.users[USER_ID].equals(theirs.users[USER_ID]):
            raise ValueError("the arm and the baseline were not measured on the same users")
    ranks = pl.concat([entry.users[USER_ID] for entry in arm]).rank("dense").to_numpy().astype(np.int64) - 1
    user_index = np.split(ranks, np.cumsum([len(entry.users) for entry in arm])[:-1])  # (n_s,) each
    by_seed = {
        metric: [a.users[metric].to_numpy() - b.users[metric].to_numpy() for a, b in zip(arm, baseline, strict=True)]
        for metric in metrics
    }
    values = []  # (U,) each, whose mean is that of the seeds' means
    for differences in by_seed.values():
        weighted = [difference / (len(differences) * len(difference)) for difference in differences]
        sums = np.bincount(ranks, weights=np.concatenate(weighted))
        values.append(np.asarray(sums * len(sums), dtype=np.float64))
    intervals = bootstrap_means(np.stack(values), resamples=options.resamples, level=options.level)
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
        if len(means) > 1 and all(len(index) > 1 for index in user_index):
            parts = crossed_parts(differences, user_index)
            margins[metric] |= over_both(means, parts.users, parts.rest, options.level)
    return margins


def over_both(by_seed: Sequence[float], users: float, rest: float, level: float) -> dict[str, Any]:
    """Return the interval over users and seeds, from R and E of `statistics`."""
    seeds = float(np.var(by_seed, ddof=1)) / len(by_seed)
    parts = CrossedParts(float(np.mean(by_seed)), seeds, users, rest, len(by_seed) - 1)
    interval = crossed_interval(parts, level=level)
    both = [interval.low, interval.high]
    return {"both": both, "p": interval.p_value, "variance": {"users": users, "rest": rest}}


def reported(against: Mapping[str, Any]) -> Sequence[float]:
    """Return the interval over users and seeds, else over users."""
    ends: Sequence[float] = against.get("both") or against["users"]
    return ends


def within_margin(against: Mapping[str, Any], metric: str, margin: float) -> dict[str, Any]:
    """Return the interval's worst loss, and whether it is within the margin."""
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
    """Return the mean over seeds with its interval, as in `compare`."""
    interval = seed_interval(values, level=level)
    return {"mean": interval.mean, "interval": _ends(interval), "by_seed": list(values)}


def _ends(interval: Interval) -> list[float] | None:
    return None if math.isnan(interval.low) else [interval.low, interval.high]


START, CONTINUED, GATED = "sft", "nll", "adagrpo"
GATE_CONTROLS = {f"{GATED}-{name}" for name, gate in GATES.items() if gate.control}  # of its λ and term


def paired_outcomes(users: Mapping[Point, pl.DataFrame], *, resamples: int = 2000) -> dict[str, Any]:
    """Return intervals of checkpoints' metrics and differences from the starting policy, continued NLL and controls.

    Controls are those of the gate: `adagrpo` is compared with every `adagrpo-<gate>`.

    Percentile bootstrap over users with shared resamples; other seeds are not covered. `users` has `per_user` by arm
    and checkpoint, (`sft`, `start`) included. JSON-able: `users`, `checkpoints`, `against`; 95 %, rates as fractions.
    """
    start = users[START, "start"]
    for point, table in users.items():
        if not table[USER_ID].equals(start[USER_ID]):
            raise ValueError(f"{point}: measured on other users than the starting policy")
    names = [name for name in metric_names(ReportPart.RESULTS) if name in start.columns and lookup(name).better]
    values = {point: table.select(names).to_numpy().T for point, table in users.items()}  # (metrics, N) each
    controls = {
        (GATED, kind): [one for one in users if one[0] in GATE_CONTROLS and one[1] == kind]
        for kind in ("best", "final")
    }
    pairs = [
        (point, reference)
        for point in users
        for reference in ((START, "start"), (CONTINUED, point[1]), *controls.get(point, ()))
        if reference in users and point[0] not in (START, reference[0])
    ]
    differences = [values[point] - values[reference] for point, reference in pairs]
    intervals = bootstrap_means(np.concatenate([*values.values(), *differences]), resamples=resamples)
    parts = iter([intervals[first : first + len(names)] for first in range(0, len(intervals), len(names))])
    checkpoints, against = [], []
    for arm, kind in users:
        own = {name: one._asdict() for name, one in zip(names, next(parts), strict=True)}
        for rates in own.values():  # which are not tested
            del rates["p_value"]
        checkpoints.append({"arm": arm, "checkpoint": kind, "metrics": own})
    for (arm, kind), (reference, _) in pairs:
        tested = {name: one._asdict() for name, one in zip(names, next(parts), strict=True)}
        against.append({"arm": arm, "checkpoint": kind, "reference": reference, "metrics": tested})
    return {"users": len(start), "checkpoints": checkpoints, "against": against}
