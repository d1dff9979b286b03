"""What the diagnosis says of every measured pair, by 20 seeds: `verdicts.jsonl` beside `outcomes.jsonl`.

    python -m research.verdict.verdicts --out runs/verdict

Read are the arrays that `research.verdict.measure` kept, by the same function as `adagrpo diagnose`. Beside it stands
what one draw says, as earlier versions of the rule had it: one halving of the users, one draw of the groups, and a gate
that must select and point at some thresholds. (Their p-values came from a bootstrap, which adds noise of its own; here
they are those of normal intervals. The truth, which they read where it was known, is left out.)
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adagrpo import metrics
from adagrpo.diagnosis import Lists, ThresholdTest, cross_fitted_mix
from adagrpo.diagnosis.judgement import judge, serving_tests
from adagrpo.diagnosis.orders import target_ranks
from adagrpo.diagnosis.strata import bounded_interval
from adagrpo.evaluation.statistics import holm
from adagrpo.report import read_rows
from research.command import run
from research.rows import add_row
from research.verdict.measure import DRAWS, HERE

LEVEL = 0.05
SHARES, Q_MINS = (0.0, 0.5, 0.75, 1.0), (0.8, 0.9, 0.95, 1.0)

Arrays = Mapping[str, NDArray[Any]]


def main() -> None:
    """Judge every pair that has a row of outcomes and none of verdicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="of research.verdict.measure")
    parser.add_argument("--outcomes", type=Path, default=HERE / "outcomes.jsonl")
    parser.add_argument("--results", type=Path, default=HERE / "verdicts.jsonl")
    options = parser.parse_args()
    done = {(row["world"], row["reward"]) for row in read_rows(options.results)}
    for row in read_rows(options.outcomes):
        pair = {"world": row["world"], "reward": row["reward"]}
        if tuple(pair.values()) in done:
            continue
        name = f"{row['world']}.{row['reward'].replace(' ', '-').replace(',', '')}.npz"
        with np.load(options.out / "observed" / name) as file:
            arrays = {key: file[key] for key in file.files}
        add_row(options.results, pair | by_seed(arrays))


def by_seed(arrays: Arrays) -> dict[str, Any]:
    """The verdict of each seed, and what it is made from."""
    lists = Lists(
        arrays["items"].astype(np.int64),
        arrays["log_probs"].astype(np.float64),
        arrays["rewards"].astype(np.float64),
        arrays["targets"].astype(np.int64),
    )
    lengths, shown = arrays["history_lengths"], arrays["exposures"][lists.targets]
    judged = [judge(lists, lengths, shown, seed=seed).as_json() for seed in range(DRAWS)]
    return {
        "decisions": [one["decision"] for one in judged],
        "strengths": [one["strength"] for one in judged],
        "adds": [one["evidence"]["adds"]["mean"] for one in judged],
        "evidence": judged[0]["evidence"],
        "draws": judged[0]["draws"],
        "policy": float(metrics.ndcg(target_ranks(lists, lists.log_probs), 10).mean()),
        "one_draw": [one_draw(lists, arrays, seed) for seed in range(DRAWS)],
    }


def one_draw(lists: Lists, arrays: Arrays, seed: int) -> str:
    """The rule of earlier versions, by one draw of everything; see the module's text."""
    half = np.random.default_rng(seed).permutation(len(lists.targets)) % 2 == 0
    mix = cross_fitted_mix(lists, half)
    values = [metrics.ndcg(target_ranks(lists, keys), 10) for keys in (mix.keys, lists.log_probs)]
    tests = serving_tests(lists, arrays["history_lengths"], values[0] - values[1])[1]
    raw = [test.difference.p_value for test in tests]
    adjusted = [2 * raw[0], *(2 * p for p in holm(raw[1:]))]
    gains = [test.difference.mean > 0 and p <= LEVEL for test, p in zip(tests, adjusted, strict=True)]
    passes = min(holm([test.p_value for test in thresholds(arrays, f"sample-{seed}")])) <= LEVEL
    return "use" if gains[0] and passes else "rerank_only" if any(gains) else "do_not_use"


def thresholds(arrays: Arrays, kind: str) -> list[ThresholdTest]:
    """Does a gate select, and does the reward point, at each pair of thresholds, by the groups of one draw?"""
    difficulty, pull = arrays[f"{kind}.difficulty"], arrays[f"{kind}.pull"].astype(np.float64)
    tests = []
    for tau in SHARES:
        hard = difficulty >= tau
        pulls = bounded_interval(pull[hard & ~arrays[f"{kind}.degenerate"]])
        for q_min in Q_MINS:
            true, fake = (
                hard & ~arrays[f"{kind}.{of}degenerate"] & (arrays[f"{kind}.{of}q"] >= q_min)
                for of in ("", "shuffled_")
            )
            excess = bounded_interval(true.astype(np.float64) - fake)
            tests.append(ThresholdTest(tau, q_min, int(true.sum()), (excess, pulls)))
    return tests


if __name__ == "__main__":
    run(main)
