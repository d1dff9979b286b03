"""Estimates of another policy from logs, held against what is true: `adagrpo.off_policy`.

    python -m benchmarks.off_policy [--replications 500] [--only lists,open-bandit]

The marketplace: users and items of the simulator, whose utilities are known. Lists are drawn one item after the other
from a logging policy, users examine them from the top, and the first item that is examined and wanted is clicked, which
ends the visit. Policies draw from a softmax of utility seen with error; the target sees it with less. The truth is the
mean, over many lists of the target, of the exact chance of a click.

Open Bandit: the log of Thompson sampling says what the uniform policy would have had, and the log of the uniform policy
says what it did have.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.data.simulation.marketplace import Marketplace, simulate
from adagrpo.off_policy import (
    Estimate,
    cascade,
    doubly_robust,
    ips,
    overlap,
    snips,
)

__all__ = ["Score", "World", "open_bandit", "scores"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
PLACES, ANSWERS = 5, 4000


class World(NamedTuple):
    """Who is asked, what they want, and what two policies think they want."""

    utility: Floats  # (U, V)
    logging: Floats  # (U, V) log-probability of each item at the first position
    target: Floats  # (U, V)

    @classmethod
    def of_marketplace(cls, *, error: float = 1.0, sharpness: float = 1.0, seed: int = 0) -> World:
        """A simulated marketplace; `error` is what the logging policy sees more wrongly than the target."""
        truth = simulate(Marketplace(users=1000, items=100, seed=seed)).truth
        rows, items = np.arange(len(truth.user_ids)), np.arange(len(truth.item_ids))
        utility = truth.utility(rows, np.broadcast_to(items, (len(rows), len(items))).copy())
        draw = np.random.default_rng([seed, 1])
        seen = np.log(utility + 0.05) + 0.3 * draw.normal(size=utility.shape)
        worse = seen + error * draw.normal(size=utility.shape)
        return cls(utility, _log_softmax(0.7 * sharpness * worse), _log_softmax(sharpness * seen))


class Log(NamedTuple):
    """Answers of the logging policy."""

    users: Ints  # (N,)
    slates: Ints  # (N, K)
    clicks: Floats  # (N, K)
    logged: Floats  # (N, K) log-probability at each place given those above
    target: Floats  # (N, K)


class Score(NamedTuple):
    """How an estimator did over the replications."""

    truth: float
    bias: float
    error_of_bias: float
    rmse: float
    coverage: float  # of intervals of 95 %
    refused: float  # share of the logs


def draw_log(world: World, answers: int, draw: np.random.Generator) -> Log:
    """Answers to users at random."""
    users = draw.integers(len(world.utility), size=answers)
    slates = _drawn(world.logging[users], PLACES, draw)
    wanted = draw.random(slates.shape) < _examined(PLACES) * np.take_along_axis(world.utility[users], slates, 1)
    clicks = (wanted & (wanted.cumsum(1) == 1)).astype(float)
    return Log(users, slates, clicks, *(_places(of[users], slates) for of in (world.logging, world.target)))


def true_value(world: World, places: int, draw: np.random.Generator, lists: int) -> float:
    """The mean clicks on a list of the target."""
    users = draw.integers(len(world.utility), size=lists)
    slates = _drawn(world.target[users], places, draw)
    chances = _examined(places) * np.take_along_axis(world.utility[users], slates, 1)
    return float((1 - np.prod(1 - chances, axis=1)).mean())


def estimates(world: World, log: Log) -> Iterator[tuple[str, Estimate, bool]]:
    """Each estimator on a log, and whether the log would be refused."""
    first, whole = np.exp(log.target[:, 0] - log.logged[:, 0]), np.exp((log.target - log.logged).sum(1))
    shown, clicked = log.slates[:, 0], log.clicks[:, 0]
    # a model that knows the items and not the users, and is a third too high
    model = np.minimum(1.3 * world.utility.mean(0), 1.0)
    expected = (np.exp(world.target[log.users]) * model).sum(1)
    one = overlap(first).problem is not None
    yield "first item, IPS", ips(clicked, first, users=log.users), one
    yield "first item, SNIPS", snips(clicked, first, users=log.users), one
    yield "first item, DR", doubly_robust(clicked, first, model[shown], expected, users=log.users), one
    all_of_it = overlap(whole).problem is not None
    yield "list, IPS", ips(log.clicks.sum(1), whole, users=log.users), all_of_it
    given = (log.clicks, log.target, log.logged)
    yield "list, cascade", cascade(*given, normalised=False, users=log.users), all_of_it
    yield "list, cascade, self-normalised", cascade(*given, users=log.users), all_of_it


def scores(
    world: World, replications: int, answers: int = ANSWERS, seed: int = 0, lists: int = 400_000
) -> dict[str, Score]:
    """Bias, RMSE and coverage of every estimator."""
    draw = np.random.default_rng(seed)
    truths = {places: true_value(world, places, draw, lists) for places in (1, PLACES)}
    found: dict[str, list[tuple[Estimate, bool]]] = {}
    for _ in range(replications):
        for name, estimate, refused in estimates(world, draw_log(world, answers, draw)):
            found.setdefault(name, []).append((estimate, refused))
    result = {}
    for name, rows in found.items():
        truth = truths[1 if name.startswith("first") else PLACES]
        errors = np.array([estimate.value - truth for estimate, _ in rows])
        inside = [estimate.low <= truth <= estimate.high for estimate, _ in rows]
        spread = float(errors.std(ddof=1) / np.sqrt(len(errors)))
        rmse = float(np.sqrt(np.square(errors).mean()))
        refused = float(np.mean([refused for _, refused in rows]))
        result[name] = Score(truth, float(errors.mean()), spread, rmse, float(np.mean(inside)), refused)
    return result


def open_bandit(path: Path) -> Iterator[tuple[str, Estimate, Estimate, Estimate]]:
    """For each campaign what the uniform policy had, and two estimates of it from the log of Thompson sampling."""
    table = pl.read_parquet(path)
    for (campaign,), part in table.group_by("campaign", maintain_order=True):
        items = part["item_id"].n_unique()
        by_policy = {str(name): rows for (name,), rows in part.group_by("policy")}
        had = by_policy["random"]["click"].to_numpy().astype(float)
        bts = by_policy["bts"]
        weights = 1 / items / bts["propensity"].to_numpy().astype(float)
        clicks = bts["click"].to_numpy().astype(float)
        yield str(campaign), ips(had, np.ones(len(had))), ips(clicks, weights), snips(clicks, weights)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replications", type=int, default=500)
    parser.add_argument("--open-bandit", type=Path, default=Path("../shared/data/open-bandit/logs.parquet"))
    parser.add_argument("--only", default="lists,open-bandit")
    options = parser.parse_args()
    near, only = World.of_marketplace(error=0.5), options.only.split(",")
    worlds = {
        "lists": {
            "target near the log": near,
            "target far from the log": World.of_marketplace(error=2.0, sharpness=2.0),
        },
    }
    for name, world in ((n, w) for kind, some in worlds.items() if kind in only for n, w in some.items()):
        print(f"\n{name}; {options.replications} logs of {ANSWERS:,} answers\n")
        print(
            "| estimator | truth | bias (± its error) | RMSE | coverage of 95 % | refused |\n|---|--:|--:|--:|--:|--:|"
        )
        for estimator, s in scores(world, options.replications).items():
            bias = f"{100 * s.bias:+.3f} ± {100 * s.error_of_bias:.3f}"
            values = f"{100 * s.truth:.2f} % | {bias} | {100 * s.rmse:.3f} | {s.coverage:.1%} | {s.refused:.0%}"
            print(f"| {estimator} | {values} |")
    if "open-bandit" in only and options.open_bandit.is_file():
        print("\n| campaign | uniform, as it was | IPS from Thompson | SNIPS from Thompson | effective answers |")
        print("|---|--:|--:|--:|--:|")
        for campaign, had, one, other in open_bandit(options.open_bandit):
            cells = [f"{100 * e.value:.3f} % ({100 * e.low:.3f} to {100 * e.high:.3f})" for e in (had, one, other)]
            print(f"| {campaign} | {' | '.join(cells)} | {one.effective_size:,.0f} of 10,000 |")


def _log_softmax(values: Floats) -> Floats:
    top = values.max(1, keepdims=True)
    return values - top - np.log(np.exp(values - top).sum(1, keepdims=True))


def _examined(places: int) -> Floats:
    return 1 / np.arange(1, places + 1) ** 0.5


def _drawn(log_probs: Floats, places: int, draw: np.random.Generator) -> Ints:
    """Lists by Gumbel top-k."""
    keys = log_probs + draw.gumbel(size=log_probs.shape)
    best = np.argpartition(-keys, places - 1, axis=1)[:, :places]
    order = np.argsort(-np.take_along_axis(keys, best, 1), axis=1)
    return np.take_along_axis(best, order, 1)


def _places(log_probs: Floats, slates: Ints) -> Floats:
    """(N, K) log-probability of each item at its place given those above."""
    own = np.take_along_axis(log_probs, slates, 1)
    above = np.exp(own).cumsum(1) - np.exp(own)
    return own - np.log1p(-np.minimum(above, 1 - 1e-12))


if __name__ == "__main__":
    main()
