"""The retrieval-validity frontier of the paper's gate: HR@10 against invalid Semantic IDs, for every arm of its trial.

Differences are from continued NLL, with 95 % intervals over users and seeds; of two seeds, which say next to nothing of
other seeds, over users. Pairs of arms are those of `research/paper_gate/plan.yaml`, corrected by Holm over all of them
and both checkpoints, on each axis by itself. Of plain samples the invalid share is known by seed alone: their interval
is Student's over the seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, isnan, log, sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

from scipy import optimize, stats

from adagrpo.report.comparison_page import format_difference, format_ends, read_comparison
from adagrpo.report.page import read_rows
from adagrpo.report.tables import MISSING, Table, format_metric, format_p
from adagrpo.statistics import holm, seed_interval
from research.figures.public_sets import SETS

__all__ = [
    "alone_table",
    "frontier_pairs",
    "frontier_table",
    "moved_table",
    "power_table",
    "strata_table",
]

HR, INVALID, SAMPLED = "hr@10", "hallucination@10", "invalid_samples"
BASELINE, LAST = "nll", "final"
LEVEL = 0.05
ROLLOUTS = ("samples", "beam")


def frontier_table(content: Mapping[str, Any]) -> Table:
    """One row an arm and checkpoint: what it admitted, and both axes minus continued NLL.

    Args:
        content: of `gate-<set>.comparison.json`.
    """
    bases = {row["checkpoint"]: row for row in content["rows"] if row["arm"] == BASELINE}
    rows = [_values(base, content, base) for base in bases.values()]
    rows += [
        _values(row, content, bases[row["checkpoint"]]) for row in content["rows"] if row["arm"].startswith(ROLLOUTS)
    ]
    header = ("arm", "checkpoint", "admitted", "HR@10", "Δ", "invalid@10", "Δ", "samples", "Δ")
    return Table.of(header, rows, 2)


def _values(row: Mapping[str, Any], content: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[str, ...]:
    """The cells of an arm; those of the baseline hold no difference."""
    known = [value for value in content["arms"].get(row["arm"], {}).get("admission", ()) if value is not None]
    means = [format_metric(name, row["test"][name]["mean"]) for name in (HR, INVALID, SAMPLED)]
    moved = [MISSING] * 3
    if row is not base:
        moved = [_difference(name, row["against"][name], content) for name in (HR, INVALID)]
        pairs = zip(row["test"][SAMPLED]["by_seed"], base["test"][SAMPLED]["by_seed"], strict=True)
        over = seed_interval([value - other for value, other in pairs])
        moved.append(_cell(INVALID, over.mean, None if isnan(over.low) else (over.low, over.high)))
    cells = [cell for pair in zip(means, moved, strict=True) for cell in pair]
    return (row["arm"], row["checkpoint"], format_metric("admission", fmean(known)) if known else MISSING, *cells)


def frontier_pairs(content: Mapping[str, Any]) -> Table:
    """One row a pair of arms and checkpoint: the first minus the second on both axes, with Holm's p-values.

    Args:
        content: of `gate-<set>.comparison.json`.
    """
    rows = [
        (
            f"{pair['arm']} minus {pair['other']}",
            pair["checkpoint"],
            _difference(HR, pair["against"][HR], content),
            format_p(hit),
            _difference(INVALID, pair["against"][INVALID], content),
            format_p(wrong),
        )
        for pair, hit, wrong in _corrected(content)
    ]
    return Table.of(("arms", "checkpoint", "HR@10", "p, Holm", "invalid@10", "p, Holm"), rows, 2)


def _corrected(content: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], float, float]]:
    """The pairs with Holm's p-values of both axes."""
    pairs = content["pairs"]
    hit, wrong = (holm([pair["against"][name]["p"] for pair in pairs]) for name in (HR, INVALID))
    return list(zip(pairs, hit, wrong, strict=True))


def power_table(results: Path, names: Sequence[str]) -> Table:
    """What the trial could have found: by set, the paper's gate over a random one, and the least effects.

    The ratio of invalid Semantic IDs is of each seed, counts of all settings added; p of its mean logarithm, Student's.
    The least effects are differences in HR@10 and invalid@10 of one setting that a t-test over the seeds finds in four
    of five trials, by the standard deviation between seeds: without a correction, and at the first step of Holm's over
    the pairs of the set.

    Args:
        results: the folder of the studies.
        names: `gate-<set>` of sets with several seeds.
    """
    lines = []
    for name in names:
        rows = read_rows(results / "paper_gate" / f"{name}.jsonl")
        last = [row for row in rows if (row["checkpoint"], row["split"]) == (LAST, "test")]
        by_seed: dict[int, dict[str, Mapping[str, float]]] = {}
        for row in last:
            by_seed.setdefault(row["seed"], {})[row["arm"]] = row["metrics"]
        arms = {arm for found in by_seed.values() for arm in found}
        settings = [(arm, arm.replace("-paper-", "-random-")) for arm in sorted(arms) if "-paper-" in arm]
        sums = [[sum(found[pair[side]][INVALID] for pair in settings) for side in (0, 1)] for found in by_seed.values()]
        logs = seed_interval([log(paper / random) for paper, random in sums])
        pairs = len(read_comparison(results / "paper_gate" / f"{name}.comparison.json")["pairs"])
        cells = []
        for metric in (HR, INVALID):
            variances = [
                stats.tvar([100 * (found[one][metric] - found[other][metric]) for found in by_seed.values()])
                for one, other in settings
            ]
            cells += [f"{least_effect(sqrt(fmean(variances)), len(sums), LEVEL / m):.2f}" for m in (1, pairs)]
        ratios = ", ".join(f"{paper / random:.2f}" for paper, random in sums)
        title = SETS[name.removeprefix("gate-")]
        lines.append((title, ratios, f"{exp(logs.mean):.2f}", format_p(logs.p_value), *cells))
    header = ("invalid, paper over random", "by seed", "mean", "p", "least HR@10", "Holm", "least invalid@10", "Holm")
    return Table.of(header, lines)


def least_effect(deviation: float, count: int, level: float) -> float:
    """The mean difference that a two-sided t-test of `count` seeds finds with a probability of .8.

    Args:
        deviation: standard deviation of the difference between seeds, in its unit.
        count: of seeds.
        level: of the test.

    Example:
        >>> round(least_effect(1.0, 3, 0.05), 2)
        3.26
    """
    freedom = count - 1
    critical = stats.t.isf(level / 2, freedom)
    shift = optimize.brentq(lambda ncp: stats.nct.sf(critical, freedom, ncp) - 0.8, 0.0, 100 * critical)
    return float(shift * deviation / sqrt(count))


def strata_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One row a stratum: HR@10 of the policy's order and the reward's, and what the reward's gains, in points.

    Args:
        rows: of `research.paper_gate.strata`, of one set.
    """
    found = {(row["users"], row["stratum"]): row for row in rows}
    lines = []
    for stratum in dict.fromkeys(row["stratum"] for row in rows):
        row = found["all", stratum]
        shares = [format_metric("admission", row[f"{order}_{HR}"]) for order in ("policy", "reward")]
        halves = [_gain(found[users, stratum], "gain") for users in ("fitted", "held out")]
        lines.append(
            (
                stratum,
                str(row["cases"]),
                *shares,
                _gain(row, "gain"),
                str(row["shuffled_cases"]),
                _gain(row, "shuffled_gain"),
                *halves,
            )
        )
    heads = ("stratum", "cases", "policy", "reward", "gain", "cases, shuffled", "gain, shuffled")
    return Table.of((*heads, "gain, users fitted on", "gain, users held out"), lines)


def _gain(row: Mapping[str, Any], kind: str) -> str:
    """A gain in points of HR@10, and half of its interval."""
    mean, half = row[f"{kind}_{HR}"], row[f"{kind}_{HR}_half"]
    if mean is None or half is None:
        return MISSING
    text = f"{100 * mean:+.1f}"
    return f"{text if float(text) else '0.0'} ± {100 * half:.1f}".replace("-", "\N{MINUS SIGN}")


def moved_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One row an arm, means over seeds: how far it moved, and at which code its invalid Semantic IDs leave the trie.

    Args:
        rows: of `research.paper_gate.moved`, of one set.
    """
    lines = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm]
        levels = [fmean(shares) for shares in zip(*(row["leaves_at"] for row in mine), strict=True)]
        rates = [format_metric(INVALID, rate) for rate in (sum(levels), *levels, fmean(row["users"] for row in mine))]
        lines.append((arm, f"{fmean(row['distance'] for row in mine):.2f}", *rates))
    codes = (f"code {level + 1}" for level in range(len(rows[0]["leaves_at"])))
    return Table.of(("arm", "distance from NLL", "invalid@10", *codes, "users with one"), lines)


def alone_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One row a test of the gate by itself: what it admits, its invalid Semantic IDs and those of a random gate.

    Args:
        rows: of `research.paper_gate.alone`, of one set; a test whose random gate is not there yet is left out.
    """
    found = {row["arm"]: row for row in rows}
    tests = [row for row in rows if "less_random" in row]
    lines = []
    for row in tests:
        test = row["arm"].removesuffix("-paper")
        rates = [format_metric(INVALID, one["metrics"][INVALID]) for one in (row, found[f"{test}-random"])]
        moved = []
        for name in (HR, INVALID):
            mean, variance = row["less_random"][name]
            half = 1.96 * variance**0.5
            moved.append(_cell(name, mean, (mean - half, mean + half)))
        lines.append((test, format_metric("admission", row["admission"]), *rates, *moved))
    heads = ("test", "admitted", "invalid@10", "random gate of its size", "HR@10, minus random")
    return Table.of((*heads, "invalid@10, minus random"), lines)


def _ends(against: Mapping[str, Any], content: Mapping[str, Any]) -> Sequence[float]:
    """The interval over users and seeds, or over users where there are two seeds or one."""
    ends: Sequence[float] = against["both" if len(content["seeds"]) > 2 else "users"]
    return ends


def _difference(metric: str, against: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    return _cell(metric, against["difference"], _ends(against, content))


def _cell(metric: str, mean: float, ends: Sequence[float] | None) -> str:
    return format_difference(metric, mean) + ("" if ends is None else f" ({format_ends(metric, ends)})")
