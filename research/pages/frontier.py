"""The retrieval-validity frontier of the paper's gate: HR@10 against invalid Semantic IDs, for every arm of its trial.

Differences are from continued NLL, with 95 % intervals over users and seeds; of two seeds, which say next to nothing of
other seeds, over users. Pairs of arms are those of `research/paper_gate/plan.yaml`, corrected by Holm over all of them
and both checkpoints, on each axis by itself. Of plain samples the invalid share is known by seed alone: their interval
is Student's over the seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import exp, isnan, log, sqrt
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from scipy import optimize, stats

from adagrpo.report.charts import GREY, INK, METHODS, SURFACE, draw
from adagrpo.report.comparison_page import format_difference, format_ends, read_comparison
from adagrpo.report.page import read_rows
from adagrpo.report.tables import MISSING, Table, format_metric, format_p
from adagrpo.statistics import holm, seed_interval
from research.figures.seven_sets import SETS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "ArmName",
    "alone_table",
    "frontier_pairs",
    "frontier_picture",
    "frontier_table",
    "moved_table",
    "power_table",
    "strata_table",
    "trials",
]

HR, INVALID, SAMPLED = "hr@10", "hallucination@10", "invalid_samples"
BASELINE, LAST = "nll", "final"
LEVEL = 0.05
ROLLOUTS = {"samples": "sampled rollouts", "beam": "beam search"}
GATES = {  # of the plan: what they are called here, their colour and their mark
    "none": ("no gate", METHODS["mixture"], "o"),
    "paper": ("paper's gate", METHODS["adagrpo"], "o"),
    "random": ("random gate", GREY, "o"),
    "inverted": ("inverted gate", GREY, "s"),
    "miss": ("earlier gate", METHODS["adagrpo"], "s"),
}
WIDTH, ROW, DOT = 880, 270, 15  # pixels: the picture, a row of panels, a mark


class ArmName(NamedTuple):
    """What the name of an arm says.

    Example:
        >>> ArmName.of("beam-paper-p0.3")
        ArmName(rollouts='beam', gate='paper', pressure='0.3')
    """

    rollouts: str
    gate: str
    pressure: str

    @classmethod
    def of(cls, name: str) -> ArmName | None:
        """None where an arm is none of the trial's."""
        parts = name.split("-")
        if len(parts) != 3 or parts[0] not in ROLLOUTS or parts[1] not in GATES:
            return None
        return cls(parts[0], parts[1], parts[2].removeprefix("p"))


def trials(results: Path) -> dict[str, dict[str, Any]]:
    """The comparisons of the trial that there are, by what their sets are called.

    Args:
        results: the folder of the studies.
    """
    files = {name: results / "paper_gate" / f"gate-{data}.comparison.json" for data, name in SETS.items()}
    return {name: read_comparison(path) for name, path in files.items() if path.is_file()}


def frontier_table(content: Mapping[str, Any]) -> Table:
    """One row an arm and checkpoint: what it admitted, and both axes minus continued NLL.

    Args:
        content: of `gate-<set>.comparison.json`.
    """
    bases = {row["checkpoint"]: row for row in content["rows"] if row["arm"] == BASELINE}
    rows = [_values(base, content, base) for base in bases.values()]
    rows += [
        _values(row, content, bases[row["checkpoint"]]) for row in content["rows"] if ArmName.of(row["arm"]) is not None
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


def frontier_picture(contents: Mapping[str, Mapping[str, Any]]) -> str:
    """Draw a row of two panels a set: sampled rollouts and beam search, HR@10 against invalid Semantic IDs.

    Args:
        contents: of `gate-<set>.comparison.json`, by what the set is called.
    """

    def paint(axes: Axes) -> None:
        for name, color, marker in GATES.values():
            axes.plot([], [], marker, color=color, ms=DOT - 6, label=name)
        axes.plot([], [], "o", color=INK, mfc=SURFACE, ms=DOT - 8, label="best checkpoint")
        axes.axis("off")
        spec = axes.get_subplotspec()
        assert spec is not None
        panels = spec.subgridspec(len(contents), len(ROLLOUTS))
        for line, (name, content) in enumerate(contents.items()):
            first: Axes | None = None
            for column, rollouts in enumerate(ROLLOUTS):
                panel = axes.figure.add_subplot(panels[line, column], sharey=first)
                first = first or panel
                _panel(panel, name, content, rollouts)
                panel.tick_params(labelleft=column == 0)

    points = [
        f"{name}, {row['arm']}: {100 * row['against'][HR]['difference']:+.2f} points,"
        f" {100 * row['test'][INVALID]['mean']:.2f} % invalid"
        for name, content in contents.items()
        for row in content["rows"]
        if row["checkpoint"] == LAST and ArmName.of(row["arm"]) is not None
    ]
    notes = "Numbers: reward strength; random and inverted gates admit as many as the paper's"
    over = [name for name, content in contents.items() if len(content["seeds"]) < 3]
    notes += ". Bars: 95 % over users and seeds" + (
        f", over users on {' and '.join(over)}, which the title leaves out" if over else ""
    )
    return draw(
        _message(contents.values()), "; ".join(points), paint, width=WIDTH, height=ROW * len(contents), notes=notes
    )


def _message(contents: Iterable[Mapping[str, Any]]) -> str:
    """What the pairs of the paper's gate and a random one say, at the last step, on sets of three seeds or more."""
    found = [
        (hit < LEVEL, wrong < LEVEL)
        for content in contents
        if len(content["seeds"]) > 2
        for pair, hit, wrong in _corrected(content)
        if pair["checkpoint"] == LAST
        and [getattr(ArmName.of(pair[key]), "gate", None) for key in ("arm", "other")] == ["paper", "random"]
    ]
    if not any(map(any, found)):
        same = "No significant difference between the paper's gate and a random one"
        return f"{same}; so few seeds could show only large ones"
    hit, wrong = (sum(one) for one in zip(*found, strict=True))
    return (
        f"The paper's gate and a random one of its size differ in HR@10 in {hit} of {len(found)} settings,"
        f" in invalid Semantic IDs in {wrong}"
    )


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


def _panel(axes: Axes, name: str, content: Mapping[str, Any], rollouts: str) -> None:
    rows = {(row["arm"], row["checkpoint"]): row for row in content["rows"]}
    axes.axhline(0, color=INK, lw=1)
    base = rows[BASELINE, LAST]["test"][INVALID]["mean"]
    axes.plot([100 * base], [0], "D", color=METHODS["nll"], ms=8, zorder=9)
    axes.annotate(
        "NLL", (100 * base, 0), xytext=(7, -14), textcoords="offset points", color=METHODS["nll"], fontsize=11
    )
    for (arm, checkpoint), row in rows.items():
        named = ArmName.of(arm)
        if named is None or named.rollouts != rollouts or checkpoint != LAST:
            continue
        _, color, marker = GATES[named.gate]
        x, y = _place(row)
        best = rows.get((arm, "best"))
        if best is not None:
            other = _place(best)
            axes.plot([other[0], x], [other[1], y], color=color, lw=1, zorder=1)
            axes.plot(*[[end] for end in other], marker, mec=color, mfc=SURFACE, ms=DOT - 8, zorder=2)
        wide, high = (_ends(row["against"][metric], content) for metric in (INVALID, HR))
        shift = x - 100 * row["against"][INVALID]["difference"]  # of a difference to where the arm stands
        axes.plot([max(0.0, shift + 100 * end) for end in wide], [y, y], color=color, lw=1, alpha=0.5, zorder=1)
        axes.plot([x, x], [100 * end for end in high], color=color, lw=1, alpha=0.5, zorder=1)
        axes.plot([x], [y], marker, color=color, ms=DOT - 2, zorder=4)
        look: dict[str, Any] = {"ha": "center", "va": "center_baseline", "fontsize": 9, "zorder": 5}
        axes.text(x, y, named.pressure.removeprefix("0"), color=SURFACE, **look)
    axes.set_title(f"{name}, {ROLLOUTS[rollouts]} ({len(content['seeds'])} seed{'s' * (len(content['seeds']) > 1)})")
    axes.set_xlim(left=max(0.0, axes.get_xlim()[0]))
    axes.grid()
    axes.set_xlabel("invalid Semantic IDs in the first ten of a free beam, %", loc="right")
    if rollouts == next(iter(ROLLOUTS)):
        axes.set_ylabel("HR@10 over NLL, points")


def _place(row: Mapping[str, Any]) -> tuple[float, float]:
    """Where a row stands: per cent invalid, points of HR@10 over continued NLL."""
    return 100 * row["test"][INVALID]["mean"], 100 * row["against"][HR]["difference"]


def _ends(against: Mapping[str, Any], content: Mapping[str, Any]) -> Sequence[float]:
    """The interval over users and seeds, or over users where there are two seeds or one."""
    ends: Sequence[float] = against["both" if len(content["seeds"]) > 2 else "users"]
    return ends


def _difference(metric: str, against: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    return _cell(metric, against["difference"], _ends(against, content))


def _cell(metric: str, mean: float, ends: Sequence[float] | None) -> str:
    return format_difference(metric, mean) + ("" if ends is None else f" ({format_ends(metric, ends)})")
