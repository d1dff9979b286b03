"""Learned weights against one weight as a re-ranking of real lists: runs of the fair trial, under each of its seeds.

    python -m research.learned_trust.real --runs runs/fair/trial-lastfm --name lastfm

`--runs` is a comparison with two seeds or more. Under each seed the weights are fitted to the validation choices of
its starting policy, and the one weight is the best of `WEIGHTS` on the same choices. Both then re-rank the beams of the
test cases. A row of `real.jsonl` has hits at 10 against the policy's own order and the learned order against that of
one weight, with intervals over users and seeds; a set that has its row is not measured again.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adagrpo import metrics
from adagrpo.console import StderrConsole
from adagrpo.diagnosis.orders import Lists, mixed_keys, target_ranks
from adagrpo.errors import UserError
from adagrpo.evaluation.crossed import crossed_interval, crossed_parts
from adagrpo.evaluation.reranking import WEIGHTS, best_weight, reward_spread
from adagrpo.pipeline import Run
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.report import read_rows
from research.command import run
from research.learned_trust.choices import choices_of, trusted_options, write_trust
from research.rows import add_row

__all__ = ["Reranked", "lists_of", "over_seeds", "reranked"]

HERE = Path(__file__).parent
REWARD = "{kind: lambdarank}"


class Reranked(NamedTuple):
    """Hits at 10 of `N` test users under one seed, by what their lists were sorted by."""

    decision: str  # of the fit: levels, one weight or none
    best: float  # the one weight
    policy: NDArray[np.float64]  # (N,)
    one_weight: NDArray[np.float64]  # (N,)
    trusted: NDArray[np.float64]  # (N,)


def main() -> None:
    """Measure a set that has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--results", type=Path, default=HERE / "real.jsonl")
    given = parser.parse_args()
    folders = sorted(given.runs.glob("seed-*"))
    if len(folders) < 2:
        raise UserError(f"--runs {given.runs}: {len(folders)} runs of a seed; intervals over seeds take two or more")
    if any(row["set"] == given.name for row in read_rows(given.results)):
        print(f"{given.name}: has its row in {given.results}, and is not measured again")
        return
    add_row(given.results, {"set": given.name} | over_seeds([reranked(folder) for folder in folders]))


def reranked(folder: Path) -> Reranked:
    """Fit the weights of a run's reward to validation choices, and re-rank its test cases.

    Args:
        folder: of a run with a starting policy and what its reward needs.
    """
    with tempfile.TemporaryDirectory() as work:
        file = Path(work) / "trust.json"
        plain = Run.open(folder, [f"reward={REWARD}"], StderrConsole())
        decision = write_trust(plain, file)["decision"]
        trusted = Run.open(folder, [f"reward={trusted_options(REWARD, file)}"], StderrConsole())
        held, test, learned = lists_of(plain, "validation"), lists_of(plain, "test"), lists_of(trusted, "test")
    spread = reward_spread(held.items, held.rewards)
    best = best_weight({w: metrics.ndcg(target_ranks(held, mixed_keys(held, w, spread)), 10) for w in WEIGHTS})
    orders = (test.log_probs, mixed_keys(test, best, spread), mixed_keys(learned, 1.0, 1.0))
    return Reranked(decision, best, *(metrics.hit_rate(target_ranks(test, keys), 10) for keys in orders))


def lists_of(run: Run, split: str) -> Lists:
    """The starting policy's beams of a split, with what the run's reward says of them."""
    choices = choices_of(Models(RunData(run)), split)
    return Lists(choices.items, choices.log_probs, choices.rewards, choices.targets)


def over_seeds(seeds: Sequence[Reranked]) -> dict[str, Any]:
    """The content of a row: means over seeds and users, differences as [mean, low, high] over both."""

    def less(first: str, second: str) -> list[float]:
        parts = crossed_parts([getattr(one, first) - getattr(one, second) for one in seeds])
        interval = crossed_interval(parts)
        return [interval.mean, interval.low, interval.high]

    return {
        "users": len(seeds[0].policy),
        "seeds": len(seeds),
        "decisions": [one.decision for one in seeds],
        "best_weights": [one.best for one in seeds],
        "policy": float(np.mean([one.policy.mean() for one in seeds])),
        "one_weight": less("one_weight", "policy"),
        "trusted": less("trusted", "policy"),
        "trusted_minus_one_weight": less("trusted", "one_weight"),
    }


if __name__ == "__main__":
    run(main)
