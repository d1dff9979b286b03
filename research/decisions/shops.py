"""What `adagrpo decide` serves in simulated shops, whose truth neither it nor any model reads; what `diagnose` said.

    python -m research.decisions.shops --out runs/decisions
    python -m research.decisions.shops --table

`shops.yaml` says which worlds, rewards and training seeds. A row of `shops.jsonl` is a run: the verdict of `diagnose`,
what `decide` chose, and HR@10 and true utility@10 on test of every contender and of two trained arms, by their best
checkpoint and by their last step. What has its row is not measured again.
"""

from __future__ import annotations

import argparse
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy import stats

from adagrpo.config import load_config
from adagrpo.console import StderrConsole
from adagrpo.lists.names import FUSE, FUSE_WITHOUT_REWARD, RERANK, START
from adagrpo.pipeline import Run
from adagrpo.report.page import read_rows
from adagrpo.report.tables import Table, format_p
from adagrpo.statistics import seed_interval
from research.command import run
from research.rows import add_row

HERE = Path(__file__).parent
RESULTS = HERE / "shops.jsonl"
HITS, UTILITY = "hr@10", "true_utility@10"
MUCH = 0.005
TRAINED = ("nll", "distill-tuned")
VERDICTS = ("use", "rerank_only", "do_not_use")  # the second is of rows from before it became `use`
TOLD = {  # of the page
    "re-ranked minus policy": (RERANK, START),
    "distill-tuned minus NLL": ("distill-tuned/final", "nll/final"),
    "distill-tuned minus policy": ("distill-tuned/final", START),
}

Values = NDArray[np.float64]


class World(NamedTuple):
    """A shop of the plan."""

    number: int
    bias: float
    reward: str


def main() -> None:
    """Measure what is missing, or print the tables of what is there."""
    parser = arguments(__doc__)
    parser.add_argument("--worlds", type=int, nargs="+", help="some of the plan's; all of them if not given")
    given = parser.parse_args()
    if not given.table:
        plan = read_plan()
        for seed in given.seeds:
            for world in worlds(plan):
                if given.worlds is None or world.number in given.worlds:
                    _measure(plan, world, seed, given.out)
    print("\n\n".join(tables(read_rows(RESULTS))))


def arguments(description: str | None) -> argparse.ArgumentParser:
    """What the studies of simulated shops in this folder take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where runs are made; each goes when its rows are written")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--table", action="store_true", help="print the tables alone")
    return parser


def read_plan() -> dict[str, Any]:
    """`shops.yaml`."""
    plan: dict[str, Any] = yaml.safe_load((HERE / "shops.yaml").read_text(encoding="utf-8"))
    return plan


def carry_out(
    description: str | None,
    measure: Callable[[Mapping[str, Any], float, int, Path], None],
    written: Callable[[], str],
) -> None:
    """Measure a shop of each exposure bias under the seeds that are given, and print the table of what is there."""
    given = arguments(description).parse_args()
    if not given.table:
        plan = read_plan()
        for seed in given.seeds:
            for bias in plan["exposure_bias"]:
                measure(plan, bias, seed, given.out)
    print(written())


def worlds(plan: Mapping[str, Any]) -> Iterator[World]:
    """All of the plan, in the order of their numbers."""
    kinds = product(plan["exposure_bias"], plan["rewards"], range(plan["worlds"]))
    return (World(number, bias, reward) for number, (bias, reward, _) in enumerate(kinds))


def shop(plan: Mapping[str, Any], bias: float, reward: str, folder: Path, *settings: str) -> Run:
    """The run of a shop of the plan.

    Args:
        settings: its seed or seeds, such as `seed=1`.
    """
    own = [*plan["settings"], *plan["rewards"][reward], f"data.marketplace.exposure_bias={bias}", *settings]
    return Run(folder, load_config(HERE.parents[1] / plan["recipe"], own), Path(), StderrConsole())


def _measure(plan: Mapping[str, Any], world: World, seed: int, out: Path) -> None:
    key = {"world": world.number, "seed": seed}
    if any(all(row[name] == value for name, value in key.items()) for row in read_rows(RESULTS)):
        return
    folder = out / f"shop-{world.number}-{seed}"
    made = shop(plan, world.bias, world.reward, folder, f"data.marketplace.seed={world.number}", f"seed={seed}")
    content = made.decide()
    said = made.diagnose()
    made.train(anyway=True)
    trained = {
        f"{arm}/{which}": made.stage(f"evaluate/{arm}/{which}") for arm in TRAINED for which in ("best", "final")
    }
    utility = {row["list"]: _figures(row["test"]) for row in content["contenders"]}
    utility |= {name: _figures(made.content(f"evaluate/{name}", "metrics.json")["test"]) for name in trained}
    about = {"exposure_bias": world.bias, "reward": world.reward, "verdict": said.verdict}
    add_row(RESULTS, key | about | {"chosen": content["chosen"], "best": content["best"], "lists": utility})
    shutil.rmtree(folder)


def _figures(measured: Mapping[str, float]) -> dict[str, float]:
    return {name: measured[name] for name in (HITS, UTILITY)}


def tables(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was served against each other list, by kind of shop, and by verdict."""
    return [table(rows), by_kind(rows), by_verdict(rows), predicted(rows)]


COLUMNS = ("worlds", "difference", "lower in worlds", "at most", "lower in runs", "by more than .005")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """True utility@10 of what was served less that of other lists: means over seeds of a world, intervals over worlds.

    `at most` is the exact upper bound of the share of worlds where that is below 0, one-sided at 95 % (Clopper and
    Pearson 1934).
    """
    served = _utility(rows, [row["chosen"] for row in rows])
    names = [name for name in dict.fromkeys(name for row in rows for name in row["lists"]) if "/" not in name]
    others = {name: _utility(rows, name) for name in names}
    others["the best by truth"] = np.nanmax(np.stack([*others.values()]), axis=0)
    return _written(("against", *COLUMNS), ([name, *_gained(rows, served - other)] for name, other in others.items()))


def by_kind(rows: Sequence[Mapping[str, Any]]) -> str:
    """The same by exposure bias and reward, against three lists; what was said and chosen how often."""
    against, lines = (START, RERANK, FUSE_WITHOUT_REWARD), []
    for bias, reward in dict.fromkeys((row["exposure_bias"], row["reward"]) for row in rows):
        own = [row for row in rows if (row["exposure_bias"], row["reward"]) == (bias, reward)]
        said = [{row["verdict"] for row in own if row["world"] == number} for number in _numbers(own)]
        agree = sum(len(verdicts) == 1 for verdicts in said)
        cells = [f"{bias:g}", reward, f"{len(said)}", _counts(own, "verdict"), f"{agree}", _counts(own, "chosen")]
        served = _utility(own, [row["chosen"] for row in own])
        lines.append([*cells, *(_gained(own, served - _utility(own, name))[1] for name in against)])
    header = ("exposure bias", "reward", "worlds", "said, runs", "seeds agree in", "chosen, runs")
    return _written((*header, *(f"over {name}" for name in against)), lines)


def by_verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """True utility@10 that the reward adds by what `diagnose` said, when serving and when training.

    A run counts under the verdict of its own seed; intervals are over the worlds that have such runs.
    """
    compared = {
        "re-ranked less policy": (RERANK, START),
        "fused less fused without reward": (FUSE, FUSE_WITHOUT_REWARD),
        "distill-tuned less NLL, best checkpoints": ("distill-tuned/best", "nll/best"),
        "distill-tuned less NLL, last steps": ("distill-tuned/final", "nll/final"),
        "distill-tuned less policy, last steps": ("distill-tuned/final", START),
    }
    lines = []
    for verdict in VERDICTS:
        own = [row for row in rows if row["verdict"] == verdict]
        for said, (name, reference) in compared.items() if own else ():
            lines.append([verdict, said, *_gained(own, _utility(own, name) - _utility(own, reference))])
    return _written(("verdict", "what", *COLUMNS), lines)


def verdicts(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What `by_verdict` says of re-ranking and of training to the last step, a line a verdict, for the page.

    `p` is that of a two-sided sign test over runs, which ignores that runs of one world are alike.
    """
    lines = []
    for verdict in VERDICTS:
        own = [row for row in rows if row["verdict"] == verdict]
        gained = [_utility(own, name) - _utility(own, other) for name, other in TOLD.values()]
        cells = [_gained(own, values)[1] for values in gained]
        signs = np.sign(gained[1])
        p = stats.binomtest(int((signs > 0).sum()), int(np.abs(signs).sum())).pvalue
        counts = [f"{(signs > 0).sum()}, {(signs < 0).sum()}", format_p(p), f"{(gained[2] > 0).sum()}"]
        line = [verdict, f"{len(_numbers(own))}", f"{len(own)}", *cells[:2], *counts[:2], cells[2], counts[2]]
        lines.append(tuple(line))
    first, second, third = TOLD
    return Table.of(("verdict", "worlds", "runs", first, second, "runs up, down", "p", third, "runs up"), lines)


def predicted(rows: Sequence[Mapping[str, Any]]) -> str:
    """Spearman's correlation over worlds of what re-ranking gains and what training does, by verdict.

    Both are means over the runs of a world that got the verdict; training is `distill-tuned` less NLL, last steps, in
    true utility.
    """
    lines = []
    for verdict in VERDICTS[:2]:  # under the last one validation gave weight 0 in all but five runs
        own = [row for row in rows if row["verdict"] == verdict]
        trained = _by_world(own, _utility(own, "distill-tuned/final") - _utility(own, "nll/final"))
        for metric in (UTILITY, HITS):
            moved = np.array([row["lists"][RERANK][metric] - row["lists"][START][metric] for row in own])
            found = stats.spearmanr(_by_world(own, moved), trained)
            lines.append([verdict, metric, f"{len(trained)}", f"{found.statistic:+.2f}", format_p(found.pvalue)])
    return _written(("verdict", "re-ranking's gain in", "worlds", "correlation", "p"), lines)


def _gained(rows: Sequence[Mapping[str, Any]], values: Values) -> list[str]:
    """The cells of `COLUMNS` for (N,) differences, NaN in runs that lack one of the lists."""
    there = np.isfinite(values)
    if not there.any():
        return ["0", *["–"] * (len(COLUMNS) - 1)]
    known, gained = [row for row, one in zip(rows, there, strict=True) if one], values[there]
    worlds = _by_world(known, gained)
    lower = int((worlds < 0).sum())
    runs = [f"{count} of {len(known)}" for count in ((gained < 0).sum(), (gained < -MUCH).sum())]
    return [f"{len(worlds)}", interval(worlds), f"{lower}", f"{upper_share(lower, len(worlds)):.1%}", *runs]


def _by_world(rows: Sequence[Mapping[str, Any]], values: Values) -> Values:
    """The means of (N,) runs by world."""
    of = np.array([row["world"] for row in rows])
    return np.array([values[of == number].mean() for number in _numbers(rows)])


def _written(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *lines))


def interval(worlds: Values) -> str:
    """The mean of (N,) worlds with Student's 95 % interval; of one world alone, the mean."""
    if len(worlds) < 2:
        return f"{worlds.mean():+.4f}"
    mean, low, high, _ = seed_interval(worlds.tolist())
    return f"{mean:+.4f} ({low:+.4f} to {high:+.4f})"


def upper_share(count: int, of: int) -> float:
    """The exact one-sided upper bound of a share, at 95 %.

    Example:
        >>> round(upper_share(0, 60), 3)
        0.049
    """
    return float(stats.beta.ppf(0.95, count + 1, of - count)) if count < of else 1.0


def _numbers(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    return list(dict.fromkeys(row["world"] for row in rows))


def _counts(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    return ", ".join(f"{value} {count}" for value, count in Counter(row[name] for row in rows).most_common())


def _utility(rows: Sequence[Mapping[str, Any]], names: str | Sequence[str]) -> Values:
    """(N,) of one list, or of each run's own; NaN where a run lacks it."""
    named = [names] * len(rows) if isinstance(names, str) else names
    return np.array([row["lists"].get(name, {}).get(UTILITY, np.nan) for row, name in zip(rows, named, strict=True)])


if __name__ == "__main__":
    run(main)
