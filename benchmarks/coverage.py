"""How often an interval over users and seeds holds the effect: candidates against each other on simulated comparisons.

    python -m benchmarks.coverage [--repeats 3000] [--out benchmarks/coverage.jsonl]
    python -m benchmarks.coverage --tails [--repeats 100000] [--out benchmarks/coverage-tails.jsonl]

A comparison has `S` seeds and `U` users, the same users under every seed. The difference of a user under a seed is
drawn with a known mean μ = 0, over users and seeds as they might have come out:

    binary   +1, 0 or -1, as the difference of two hit rates; a share of users who move are the same under all seeds
    heavy    b_u + e_su, both from Student's t with 3 degrees of freedom
    skewed   b_u + e_su, both centred exponentials to the third power: a few users carry the sum
    seeds    a_s of the same kind in all: normal, with a standard deviation in units of that which users leave

Where users and seeds are counted together, nothing but the mean over repetitions says whether 95 % is 95 %. The
two-way bootstrap resamples seeds and users (Owen 2007) and is run on the smallest comparisons alone.

`--tails` asks how often a p-value lies below .05, and below .05 / 25 and .05 / 175, which is what the first step of
Holm's rule over as many tests reads. There the means of the seeds are drawn themselves, normal, and the users' variance
is known. It is asked for two shares of a user's variance that come back under every seed: `SHARED`, and that of the
rows of `research/fair_trial`.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray
from scipy import special

from adagrpo.statistics import CrossedParts, crossed_interval, crossed_parts

__all__ = ["CANDIDATES", "DRAWS", "LEVELS", "TARGET", "coverage", "scenarios", "tails"]

TARGET = (0.935, 0.965)
LEVELS = (0.05, 0.05 / 25, 0.05 / 175)
SHARED = 0.3  # of a user's difference, what comes back under every seed
MEASURED = 0.02  # the same in the trained arms of `research/fair_trial`
Values = NDArray[np.float64]
Half = Callable[[CrossedParts], float]  # half of the 95 % interval


def _binary(generator: np.random.Generator, shifts: Values, users: int) -> Values:
    """(S, U) of -1, 0, 1: a tenth gain and a tenth lose; a seed moves a_s/2 from the one to the other."""
    draws = generator.random((len(shifts), users))
    same = generator.random(users) < SHARED
    draws[:, same] = draws[0, same]
    move = np.clip(shifts / 2, -0.1, 0.1)[:, None]
    return (draws < 0.1 + move).astype(np.float64) - (draws > 0.9 + move)


def _with_tails(draw: Callable[[np.random.Generator, Any], Values]) -> Callable[..., Values]:
    def values(generator: np.random.Generator, shifts: Values, users: int) -> Values:
        own, rest = draw(generator, users), draw(generator, (len(shifts), users))
        return shifts[:, None] + np.sqrt(SHARED) * own + np.sqrt(1 - SHARED) * rest

    return values


def _heavy(generator: np.random.Generator, size: Any) -> Values:
    return generator.standard_t(3, size) / np.sqrt(3.0)


def _skewed(generator: np.random.Generator, size: Any) -> Values:
    """The cube of an exponential: mean 6, variance 720 - 36."""
    return (generator.exponential(size=size) ** 3 - 6.0) / np.sqrt(684.0)


DRAWS: dict[str, tuple[Callable[..., Values], float]] = {  # and the standard deviation of one value
    "binary": (_binary, np.sqrt(0.2)),
    "heavy": (_with_tails(_heavy), 1.0),
    "skewed": (_with_tails(_skewed), 1.0),
}
NORMAL = float(special.ndtri(0.975))


def _satterthwaite(parts: CrossedParts) -> float:
    own = max(0.0, parts.users - parts.rest)
    variance = parts.seeds + own
    if parts.seeds <= 0:
        return NORMAL * float(np.sqrt(variance))
    degrees = parts.degrees * (variance / parts.seeds) ** 2
    return float(special.stdtrit(degrees, 0.975) * np.sqrt(variance))


def _cochran(parts: CrossedParts) -> float:
    student = float(special.stdtrit(parts.degrees, 0.975))
    return float(np.sqrt(NORMAL**2 * max(0.0, parts.users - parts.rest) + student**2 * parts.seeds))


CANDIDATES: dict[str, Half] = {
    "users": lambda parts: NORMAL * float(np.sqrt(parts.users)),
    "seeds": lambda parts: float(special.stdtrit(parts.degrees, 0.975) * np.sqrt(parts.seeds)),
    "satterthwaite": _satterthwaite,
    "cochran": _cochran,
    "crossed": lambda parts: crossed_interval(parts).high - parts.mean,
}
FLOORED = "crossed, no narrower than users"


def _two_way_bootstrap(values: Values, generator: np.random.Generator, resamples: int = 300) -> bool:
    """Whether the percentiles of resampled seeds and users hold zero."""
    seeds, users = values.shape
    by_user = generator.multinomial(users, np.full(users, 1 / users), resamples) / users  # (R, U)
    by_seed = generator.multinomial(seeds, np.full(seeds, 1 / seeds), resamples) / seeds
    means = ((by_user @ values.T) * by_seed).sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return bool(low <= 0 <= high)


def coverage(
    draw: str, seeds: int, users: int, ratio: float, *, repeats: int, number: int = 0, bootstrap: int = 0
) -> dict[str, dict[str, float]]:
    """Of each candidate, the share of repetitions whose interval holds zero, and its mean half-width.

    Args:
        draw: a key of `DRAWS`.
        seeds: S.
        users: U.
        ratio: standard deviation of a_s, over that which users leave in the mean of one seed.
        repeats: simulated comparisons.
        number: of the random generator.
        bootstrap: how many of them the two-way bootstrap is run on.
    """
    make, deviation = DRAWS[draw]
    generator = np.random.default_rng([number, seeds, users, int(1000 * ratio)])
    held: dict[str, list[bool]] = {name: [] for name in (*CANDIDATES, FLOORED)}
    widths: dict[str, list[float]] = {name: [] for name in (*CANDIDATES, FLOORED)}
    for repeat in range(repeats):
        shifts = generator.standard_normal(seeds) * ratio * deviation / np.sqrt(users)
        values = make(generator, shifts, users)
        parts = crossed_parts(list(values))
        halves = {name: half(parts) for name, half in CANDIDATES.items()}
        halves[FLOORED] = max(halves["crossed"], halves["users"])
        for name, width in halves.items():
            held[name].append(abs(parts.mean) <= width)
            widths[name].append(width)
        if repeat < bootstrap:
            held.setdefault("two-way bootstrap", []).append(_two_way_bootstrap(values, generator))
    unit = float(np.mean(widths["users"]))
    return {
        name: {"coverage": float(np.mean(result))}
        | ({"width_over_users": float(np.mean(widths[name])) / unit} if name in widths else {})
        for name, result in held.items()
    }


def tails(seeds: int, ratio: float, *, repeats: int, shared: float = SHARED, number: int = 0) -> dict[str, float]:
    """Count how often comparisons without an effect have a p-value of at most each of `LEVELS`.

    Args:
        seeds: S.
        ratio: as `coverage` has it.
        repeats: simulated comparisons.
        shared: of the variance of a user's difference, the part that comes back under every seed.
        number: of the random generator.

    Returns:
        The share of comparisons, by level.
    """
    generator = np.random.default_rng([number, seeds, int(1000 * ratio)])
    rest = (1 - shared) / seeds
    below = dict.fromkeys(map(str, LEVELS), 0)
    for _ in range(repeats):
        means = np.sqrt(ratio**2 + 1 - shared) * generator.standard_normal(seeds)
        mean = float(means.mean() + np.sqrt(shared) * generator.standard_normal())
        parts = CrossedParts(mean, float(means.var(ddof=1)) / seeds, shared + rest, rest, seeds - 1)
        p_value = crossed_interval(parts).p_value
        for level in LEVELS:
            below[str(level)] += p_value <= level
    return {level: count / repeats for level, count in below.items()}


def scenarios() -> Iterator[tuple[str, int, int, float]]:
    """Kind of value, seeds, users, and how much seeds vary: not at all, to eight times what users leave."""
    yield from itertools.product(DRAWS, (3, 5), (2000,), (0.0, 0.5, 1.0, 2.0, 4.0, 8.0))
    yield from itertools.product(DRAWS, (3,), (20000,), (0.0, 1.0, 8.0))


def main() -> None:
    """Run every scenario and write a row of each; those of many users with a third of the repeats."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, help="of each case")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tails", action="store_true")
    options = parser.parse_args()
    out = options.out or Path(__file__).with_name("coverage-tails.jsonl" if options.tails else "coverage.jsonl")
    with out.open("w", encoding="utf-8") as file:
        if options.tails:
            _write_tails(file, options.repeats or 100_000)
        else:
            _write_coverage(file, options.repeats or 3000)


def _write_tails(file: TextIO, repeats: int) -> None:
    for shared, seeds, ratio in itertools.product((SHARED, MEASURED), (3, 5), (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)):
        below = tails(seeds, ratio, repeats=repeats, shared=shared)
        facts = {"shared": shared, "seeds": seeds, "ratio": ratio, "repeats": repeats, "tails": below}
        file.write(json.dumps(facts) + "\n")
        file.flush()


def _write_coverage(file: TextIO, most: int) -> None:
    for draw, seeds, users, ratio in scenarios():
        bootstrap = min(most, 200) if users == 2000 and draw == "binary" else 0
        repeats = most // (1 if users == 2000 else 3)
        result = coverage(draw, seeds, users, ratio, repeats=repeats, bootstrap=bootstrap)
        facts = {"draw": draw, "seeds": seeds, "users": users, "ratio": ratio, "repeats": repeats}
        file.write(json.dumps(facts | {"intervals": result}) + "\n")
        file.flush()


if __name__ == "__main__":
    main()
