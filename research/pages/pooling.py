"""Several comparisons of the same arms under different seeds as one, from their files alone.

Means and intervals over seeds are those that one comparison of all seeds would have. Its interval over users is not
in the files, as nobody knows how a user's differences under one file's seeds go with those under another's. With
the share w_i of the seeds, and half-widths h_i,

    sd(Σ w_i D_i) <= Σ w_i sd(D_i)     so     Σ w_i h_i is at least the half-width of the mean over all seeds

and each end is the mean of the ends: the interval is too wide, if anything. So is the p-value too large, which is
that of a normal variable with this half-width. Files that hold the variances of a difference, which a file of one seed
does not, say how users go together under its seeds; of these, the interval over users and seeds is known:

    σ_b²/U = Σ w_i (R_i - E_i)     σ_e²/U = Σ w_i S_i E_i     see `adagrpo.statistics`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from adagrpo.config import CompareConfig
from adagrpo.evaluation.comparison import corrected_pairs, give_verdicts, over_both, over_seeds, within_margin

__all__ = ["pool"]

LOST = "lost"


def pool(contents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several comparisons of the same arms under different seeds as one, from their files alone.

    Args:
        contents: of `comparison.json`, in the order of their seeds.

    Returns:
        Such a content, with `name`, `seeds`, `users` (the most of any), `plan` and `rows`, for the arms that all have;
        `arms` and `pairs` where all have them.

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
            name: over_seeds([value for part in parts for value in part["test"][name]["by_seed"]], options.level)
            for name in _common(parts, "test")
        }
        validation = {
            name: sum(w * part["validation"][name] for w, part in zip(shares, parts, strict=True))
            for name in _common(parts, "validation")
        }
        against = _pooled_against(parts, bases, shares, options)
        margins = {n: within_margin(against[n], n, m) for n, m in options.margins.items() if against}
        row = {"arm": arm, "checkpoint": checkpoint, "verdict": "", "p_holm": None, "test": test}
        rows.append(row | {"validation": validation, "against": against, "margins": margins})
    give_verdicts(rows, options)
    users = max(content["users"] for content in contents)
    pooled = {"name": first["name"], "seeds": seeds, "users": users, "plan": first["plan"], "rows": rows}
    if all("arms" in content for content in contents):
        pooled["arms"] = _pooled_arms([content["arms"] for content in contents])
    if all("pairs" in content for content in contents):
        pooled["pairs"] = _pooled_pairs(contents, tables, shares, options)
    return pooled


def _pooled_arms(parts: Sequence[Mapping[str, Mapping[str, list[Any]]]]) -> dict[str, dict[str, list[Any]]]:
    """What is known of each arm, seed by seed; a file in which an arm lost no policy says nothing of that."""
    pooled = {}
    for arm in (arm for arm in parts[0] if all(arm in part for part in parts)):
        facts = [part[arm] for part in parts]
        if any(LOST in one for one in facts):
            facts = [{**one, LOST: one.get(LOST) or [None] * len(next(iter(one.values())))} for one in facts]
        if all(one.keys() == facts[0].keys() for one in facts):
            pooled[arm] = {key: [value for one in facts for value in one[key]] for key in facts[0]}
    return pooled


def _pooled_pairs(
    contents: Sequence[Mapping[str, Any]],
    tables: Sequence[Mapping[tuple[str, str], Mapping[str, Any]]],
    shares: Sequence[float],
    options: CompareConfig,
) -> list[dict[str, Any]]:
    """The arms that are held against each other, with Holm's p-values over them alone."""
    keys = ("arm", "other", "checkpoint")
    pairs = [{tuple(row[key] for key in keys): row for row in content["pairs"]} for content in contents]
    rows = []
    for point in (point for point in pairs[0] if all(point in of for of in pairs)):
        parts = [of[point] for of in pairs]
        bases = [table.get((point[1], point[2]), table[point[1], "best"]) for table in tables]
        against = _pooled_against(parts, bases, shares, options)
        rows.append(dict(zip(keys, point, strict=True)) | {"against": against})
    return corrected_pairs(rows, options)


def _common(parts: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    return [name for name in parts[0][key] if all(name in part[key] for part in parts)]


def _pooled_against(
    parts: Sequence[Mapping[str, Any]],
    bases: Sequence[Mapping[str, Any]],
    shares: Sequence[float],
    options: CompareConfig,
) -> dict[str, Any]:
    """The differences of a row, by metric."""
    return {
        name: _pooled_difference(
            [part["against"][name] for part in parts],
            [base["test"][name]["mean"] for base in bases],
            shares,
            options,
        )
        for name in _common(parts, "against")
    }


def _pooled_difference(
    parts: Sequence[Mapping[str, Any]], bases: Sequence[float], shares: Sequence[float], options: CompareConfig
) -> dict[str, Any]:
    by_seed = [value for part in parts for value in part["by_seed"]]
    seeds = over_seeds(by_seed, options.level)
    low, high = (float(np.dot(shares, [part["users"][end] for part in parts])) for end in (0, 1))
    base = float(np.dot(shares, bases))
    error = (high - low) / 2 / NormalDist().inv_cdf((1 + options.level) / 2)
    p = 2 * NormalDist().cdf(-abs(seeds["mean"]) / error) if error else float(seeds["mean"] == 0)
    pooled = {
        "difference": seeds["mean"],
        "relative": seeds["mean"] / base if base else None,
        "users": [low, high],
        "p": p,
        "seeds": seeds["interval"],
        "by_seed": by_seed,
    }
    if not all("variance" in part for part in parts):
        return pooled
    own = [part["variance"]["users"] - part["variance"]["rest"] for part in parts]
    rest = float(np.dot(shares, [len(part["by_seed"]) * part["variance"]["rest"] for part in parts])) / len(by_seed)
    return pooled | over_both(by_seed, float(np.dot(shares, own)) + rest, rest, options.level)
